"""CLIP text encoders with a concept in the prompt: one run for all layers of a step, what stands before it only once.

The encoder is causal, so what it makes of the tokens before the first placeholder depends on neither time nor layer:
``begin`` keeps their keys, values and outputs, and ``encode`` runs the rest of the prompt for all rows in one batch.
Any CLIP text model of transformers will do, flat or with ``text_model`` inside; it is called, not changed: placeholders
need no row in its table. Differentiable in the vectors, not in the model.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere import kernels
from belvedere.errors import InputError
from belvedere.generation.neti import Vectors

BYPASS = 0.2
"""Length of the bypass over that of what it is added to (section 4.2 of the paper)."""

Past = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (b, p, h, d) of the tokens before, by block."""


class Prompt(NamedTuple):
    """Of a batch of prompts, what their concepts do not change, cut before the first placeholder of any."""

    before: Tensor
    """Outputs there, as contexts have them: (b, p, c)."""
    past: Past
    rest: Tensor
    """What enters the first block from there on (b, m, c), of placeholders only their position."""
    places: tuple[Tensor, ...]
    """Where each placeholder stands: bool (b, m)."""


class Encoded(NamedTuple):
    """What the encoder made of the rest of prompts for r times and layers: all a cache has to keep."""

    hidden: Tensor
    """Last hidden states before the final norm (b, r, m, c)."""
    bypasses: tuple[Tensor | None, ...]
    """Of each placeholder: (b, r, c)."""


class TextEncoder:
    """A CLIP text model and how a U-Net reads it.

    ``penultimate``: contexts are what enters the last block, without the final norm, as in SDXL; else what leaves it,
    normalised, as in SD 1.x and 2.x. Raises ``InputError`` for a model that is not CLIP's.
    """

    def __init__(self, model: Any, penultimate: bool = False):
        model = getattr(model, "_orig_mod", model)  # of a compiled one
        body = getattr(model, "text_model", model)
        parts = ("embeddings", "encoder", "final_layer_norm")
        if not all(hasattr(body, part) for part in parts):
            raise InputError(f"{type(model).__name__} is no CLIP text model: it lacks {', '.join(parts)}")
        self.model, self.body, self.penultimate = model, body, penultimate
        self.heads: int = body.encoder.layers[0].self_attn.num_heads
        self.blocks = body.encoder.layers[:-1] if penultimate else body.encoder.layers

    @property
    def table(self) -> Tensor:
        """Embeddings of the vocabulary (v, c)."""
        return self.body.embeddings.token_embedding.weight

    @property
    def width(self) -> int:
        """Channels of an embedding and of a context."""
        return self.table.shape[1]

    @property
    def length(self) -> int:
        """The most tokens of a prompt, which its prompts are padded to."""
        return len(self.body.embeddings.position_embedding.weight)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and signs of all its weights but the vocabulary's, to which others may add words.

        Signs survive every rounding, so the same model in another number format has the same digest, and any training
        of it flips some.
        """
        total = hashlib.sha256()
        for name, weight in sorted(self.body.state_dict().items()):
            if weight.is_floating_point() and not name.endswith("token_embedding.weight"):
                total.update(f"{name} {tuple(weight.shape)}\n".encode())
                total.update(_packed_signs(weight))
        return total.hexdigest()

    def plain(self, ids: Tensor) -> Tensor:
        """Return the context (b, n, c) of prompts without a concept, token ids (b, n)."""
        return self._context(self._run(self._embed(ids)))

    @torch.no_grad()
    def begin(self, ids: Tensor, placeholders: Sequence[int]) -> Prompt:
        """Return what concepts do not change of prompts ``ids`` (b, n); ``placeholders``: the ids of their tokens.

        Without gradients: the model itself is not trained. A placeholder may stand in a prompt more than once. Raises
        ``InputError`` for a prompt without any.
        """
        ids = ids.to(self.table.device)
        places = [ids == placeholder for placeholder in placeholders]
        anywhere = torch.stack(places).any(0)
        if not anywhere.any(1).all():
            raise InputError("a prompt has no placeholder: write the concept's token into it")
        start = int(anywhere.int().argmax(1).min())
        x, past = self._embed(ids, anywhere), list[tuple[Tensor, Tensor]]()
        before = self._context(self._run(x[:, :start], keep=past))
        return Prompt(before, past, x[:, start:], tuple(place[:, start:] for place in places))

    def encode(self, prompt: Prompt, vectors: Sequence[Vectors]) -> Encoded:
        """Run the rest of prompts for r times and layers; ``vectors``: of each placeholder, (b, r, c)."""
        x = prompt.rest[:, None]  # (b, 1, m, c)
        for place, (word, _) in zip(prompt.places, vectors, strict=True):
            x = x + place[:, None, :, None] * word.to(x)[:, :, None]  # (b, r, m, c)
        hidden = self._run(x.flatten(0, 1), prompt.past)  # (b r, m, c)
        return Encoded(hidden.unflatten(0, x.shape[:2]), tuple(bypass for _, bypass in vectors))

    def contexts(self, prompt: Prompt, encoded: Encoded) -> Tensor:
        """Return the contexts (b, r, 2, n, c) of keys and values."""
        plain = changed = encoded.hidden
        for place, bypass in zip(prompt.places, encoded.bypasses, strict=True):
            if bypass is not None:
                changed = torch.where(place[:, None, :, None], _bypassed(plain, bypass), changed)
        after = self._context(torch.stack((plain, changed), 2))  # (b, r, 2, m, c)
        before = prompt.before[:, None, None].expand(-1, *after.shape[1:3], -1, -1)  # (b, r, 2, p, c)
        return torch.cat((before, after), 3)

    def _context(self, hidden: Tensor) -> Tensor:
        return hidden if self.penultimate else self.body.final_layer_norm(hidden)

    def _embed(self, ids: Tensor, placeholders: Tensor | None = None) -> Tensor:
        """Return what enters the first block (b, n, c); only positions where ``placeholders`` (b, n) says so."""
        ids, table = ids.to(self.table.device), self.body.embeddings
        if ids.shape[1] > self.length:
            raise InputError(f"a prompt of {ids.shape[1]} tokens, the text encoder takes {self.length}: shorten it")
        if placeholders is None:
            x = table.token_embedding(ids)
        else:
            x = table.token_embedding(ids.masked_fill(placeholders, 0)) * ~placeholders[..., None]
        return x + table.position_embedding.weight[: ids.shape[1]]

    def _run(self, x: Tensor, past: Past = (), keep: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Return hidden states (b r, n, c) after the blocks, of tokens that follow ``past``, the same for r rows each.

        Their keys and values go to ``keep``.
        """
        bias = _causal(x.shape[1], past[0][0].shape[1] if past else 0, x)
        for number, block in enumerate(self.blocks):
            attention = block.self_attn
            y = block.layer_norm1(x)
            q, k, v = (
                linear(y).unflatten(-1, (self.heads, -1))  # (b, n, h, d)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if keep is not None:
                keep.append((k, v))
            if past:
                k, v = (_join(*pair) for pair in zip(past[number], (k, v), strict=True))  # (b r, p + n, h, d)
            x = x + attention.out_proj(kernels.attend(q, k, v, bias=bias, scale=attention.scale).flatten(-2))
            x = x + block.mlp(block.layer_norm2(x))
        return x


def _join(before: Tensor, x: Tensor) -> Tensor:
    """Return what stands before (b, p, h, d) and ``x`` (b r, n, h, d) behind one another: (b r, p + n, h, d)."""
    return torch.cat((before.repeat_interleave(len(x) // len(before), 0), x), 1)


def _causal(count: int, start: int, x: Tensor) -> Tensor:
    """Return the bias (1, 1, n, start + n) that hides later tokens from n tokens which follow ``start`` others."""
    hidden = torch.ones(count, start + count, dtype=torch.bool, device=x.device).triu(start + 1)
    return torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -torch.inf)[None, None]


def _bypassed(hidden: Tensor, bypass: Tensor) -> Tensor:
    """Return hidden states (b, r, m, c) moved in the direction of ``bypass`` (b, r, c) by a fifth of their length."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=exact)
    return hidden + (BYPASS * length * F.normalize(bypass.to(length), dim=-1)[:, :, None]).to(hidden.dtype)


def _packed_signs(weight: Tensor) -> bytes:
    import numpy as np

    return np.packbits(torch.signbit(weight).cpu().numpy(), axis=None).tobytes()
