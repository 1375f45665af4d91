"""Pictures as tokens: cut into patches, packed behind one another, or in the padded layout of the official FiTv2."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from belvedere.errors import InputError


def patchify(image: Tensor, patch: int) -> Tensor:
    """Return the tokens of a picture (c, h p, w p), row by row: (h w, c p p); a token runs over (c, row, column)."""
    c, height, width = image.shape
    if height % patch or width % patch or not height or not width:
        raise InputError(f"a picture of {width}x{height} cannot be cut into {patch}x{patch} patches: use multiples")
    cells = image.view(c, height // patch, patch, width // patch, patch)  # (c, h, p, w, p)
    return cells.permute(1, 3, 0, 2, 4).reshape(-1, c * patch * patch)  # (n, c p p)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Return the picture (c, h p, w p) of tokens (h w, c p p) on a grid of ``size`` (h, w)."""
    cells = tokens.view(*size, -1, patch, patch)  # (h, w, c, p, p)
    return cells.permute(2, 0, 3, 1, 4).reshape(-1, size[0] * patch, size[1] * patch)  # (c, h p, w p)


def offsets_of(lengths: Sequence[int]) -> Tensor:
    """Return the cumulative starts of packed images of these lengths: int32 (s + 1,), on the CPU."""
    return torch.tensor([0, *lengths], device="cpu").cumsum(0).to(torch.int32)


class Padded(NamedTuple):
    """Where the real tokens of a padded batch are, image by image."""

    order: Tensor
    """Places of the tokens in the flattened batch, packed: int64 (n,)."""
    offsets: Tensor
    """Where each image begins: int32 (s + 1,), on the CPU."""
    sequence: Tensor
    """The row of the batch that each image is in: int64 (s,)."""

    @classmethod
    def of(cls, mask: Tensor) -> "Padded":
        """Find the images in ``mask`` (b, N): 0 is padding, tokens of one row with one id are one image."""
        ids = mask.long()
        key = torch.arange(len(ids), device=ids.device)[:, None] * (int(ids.max()) + 1) + ids  # (b, N)
        real = ids.flatten().nonzero().flatten()
        order = real[key.flatten()[real].argsort(stable=True)]
        images, counts = key.flatten()[order].unique_consecutive(return_counts=True)
        return cls(order, offsets_of(counts.tolist()), images // (int(ids.max()) + 1))

    def row_by_row(self, grid: Tensor) -> "Padded":
        """Return the same, each image's tokens in the order of their positions ``grid`` (b, 2, N), columns and rows."""
        columns, rows = self.take(grid.transpose(1, 2)).unbind(-1)
        image = torch.repeat_interleave(self.offsets.diff().long()).to(rows.device)
        key = (image * (rows.max() + 1) + rows) * (columns.max() + 1) + columns
        return self._replace(order=self.order[key.argsort()])

    def take(self, values: Tensor) -> Tensor:
        """Return the packed tokens (n, ...) of a padded batch (b, N, ...)."""
        return values.flatten(0, 1)[self.order]

    def put(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return packed tokens (n, c) in the padded layout (b, N, c), zero on padding."""
        flat = tokens.new_zeros(mask.numel(), tokens.shape[-1])
        return flat.index_copy(0, self.order, tokens).unflatten(0, mask.shape)  # (b, N, c)
