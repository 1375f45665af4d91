"""Weights of an NViST for a volume of other texels or tokens: finer ones go on from coarse ones, learned quickly.

Tokens keep their meaning, the part of the volume around their place, so what a finer token stands for is the middle of
what a coarse one did. Position embeddings are resampled, as vision transformers do for larger pictures (Dosovitskiy et
al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.2), and so are the texels that the heads make of a token.
"""

from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.nvist import NViST, VolumeDecoder
from belvedere.synthesis.nvist_initial import between


@torch.no_grad()
def resize_volume(source: NViST, target: NViST) -> dict[str, Tensor]:
    """Return the weights of ``source`` for the ``resolution`` and the ``volume_patch`` of ``target``.

    Where both are those of ``source``, the weights are its own. Raises ``InputError`` for another form of the volume.
    """
    ours: Any = source.config
    theirs: Any = target.config
    if ours.form != theirs.form:
        raise InputError(f"a volume of form {ours.form} does not become one of form {theirs.form}")
    old, new = source.decoder, target.decoder
    texels = _resampling(old.patch, new.patch, old.side / new.side)
    weights = source.state_dict()
    for name, tensor in weights.items():
        if name == "decoder.positions":
            weights[name] = _positions(tensor, old, _resampling(old.side, new.side))
        elif name.startswith("decoder.line_heads.linears."):
            weights[name] = torch.einsum("pa,ac...->pc...", texels, tensor.unflatten(0, (old.patch, -1))).flatten(0, 1)
        elif name.startswith("decoder.plane_heads.linears."):
            cells = tensor.unflatten(0, (old.patch, old.patch, -1))
            weights[name] = torch.einsum("pa,qb,abc...->pqc...", texels, texels, cells).flatten(0, 2)
    return weights


def _resampling(old: int, new: int, share: float = 1.0) -> Tensor:
    """Return the matrix (new, old) that takes numbers at ``old`` places to ``new`` in their middle ``share``."""
    places = (torch.arange(new) + 0.5) * (share * old / new) - share * old / 2  # from the middle
    return between(torch.eye(old), places)


def _positions(vectors: Tensor, decoder: VolumeDecoder, steps: Tensor) -> Tensor:
    """Return the vectors (n, c) of a volume's tokens at the places that ``steps`` (new, old) resamples to."""
    _, planes, _ = decoder.parts
    cells = vectors[:planes].unflatten(0, (-1, decoder.side, decoder.side))  # (3 or 0, h, w, c)
    lines = vectors[planes:].unflatten(0, (-1, decoder.side))  # (3 or 0, s, c)
    cells = torch.einsum("pa,qb,nabc->npqc", steps, steps, cells).flatten(0, 2)
    return torch.cat((cells, torch.einsum("pa,nac->npc", steps, lines).flatten(0, 1)))
