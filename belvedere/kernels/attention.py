"""Attention: one entry for dense and packed batches, softmax and sigmoid; the backend is found in ``backends``."""

import torch
from torch import Tensor

from belvedere.kernels.backends import Request, check_recordable, choose
from belvedere.kernels.packed import check_offsets


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    activation: str = "softmax",
    backend: str | None = None,
) -> Tensor:
    """Return attention of queries over keys and values; differentiable in q, k, v and bias.

    Dense: ``q`` (b, n, h, d), ``k`` and ``v`` (b, m, h, d) -> (b, n, h, d).
    Packed: ``q``, ``k``, ``v`` (n, h, d) with ``offsets`` int32 (s + 1,), the cumulative starts of s sequences;
    a token sees its own sequence only. Empty sequences are allowed.

    ``bias`` (broadcastable to (b, h, n, m)) is added to the logits of a dense call. ``scale`` multiplies the
    logits, 1/sqrt(d) by default. ``activation="sigmoid"`` replaces softmax over keys by an elementwise sigmoid
    of logit - log(m), m the number of keys (Ramapuram et al., arXiv 2409.04431).
    ``backend`` forces an implementation by name, as does the environment variable BELVEDERE_ATTENTION. The one named
    "triton" (on NVIDIA GPUs, but for most dense softmax) is deterministic, its gradients too, and batch-invariant:
    a sequence has the same bits alone and among others. The one named "split" is the same with the keys of few queries
    divided among the multiprocessors: deterministic but not batch-invariant, so it runs only where it is named.
    Raises ``ValueError`` for shapes that do not fit or an unknown backend or activation.
    """
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"activation {activation!r}: choose softmax or sigmoid")
    if q.ndim != (4 if offsets is None else 3):
        raise ValueError(f"q has {q.ndim} axes: (b, n, h, d) without offsets, (n, h, d) with them")
    if offsets is not None:
        check_offsets(offsets, len(q))
    request = Request(
        q.device.type,
        activation,
        packed=offsets is not None,
        bias=bias is not None,
        dtype=q.dtype,
        keys=k.shape[-3],
        head=q.shape[-1],
        rows=len(q),
        gradients=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
    )
    chosen = choose(request, backend)
    check_recordable(chosen, request)
    return chosen.run(q, k, v, offsets, bias, scale, activation)
