"""Attention, dense and packed, against its plain twin; the backend table."""

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.kernels import Packed, attend, attention, backends, flex, gated_mlp, reference
from belvedere.kernels.backends import BACKENDS, Request, choose, explain
from tests.kernels.test_ops import DTYPES, EPS, agree, random

fewer = settings(max_examples=20, deadline=None)
HEAD_DIMS = st.sampled_from([4, 32, 60, 72])


@fewer
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), HEAD_DIMS, DTYPES)
def test_dense(b: int, n: int, m: int, h: int, d: int, dtype: torch.dtype) -> None:
    q, k, v = random(b, n, h, d, dtype=dtype), random(b, m, h, d, dtype=dtype), random(b, m, h, d, dtype=dtype, seed=5)
    agree(attend, reference.attend, q, k, v)


@fewer
@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(1, 3), DTYPES, st.booleans())
def test_packed_equals_one_by_one(lengths: list[int], h: int, dtype: torch.dtype, sigmoid: bool) -> None:
    activation = "sigmoid" if sigmoid else "softmax"
    sequences = [random(n, h, 8, dtype=dtype).detach() for n in lengths]
    tokens, offsets = Packed.pack(sequences)
    got = attend(tokens, tokens, tokens, offsets=offsets, activation=activation)
    for (start, stop), one in zip(pairwise(offsets.tolist()), sequences, strict=True):
        alone = reference.attend(*[one.double()[None]] * 3, activation=activation)[0]
        assert got[start:stop].shape == alone.shape
        assert torch.allclose(got[start:stop].double(), alone, atol=EPS[dtype], rtol=EPS[dtype])


def test_packed_gradients() -> None:
    offsets = torch.tensor([0, 3, 3, 4, 9], dtype=torch.int32)
    q, k, v = random(9, 2, 8), random(9, 2, 8, seed=1), random(9, 2, 8, seed=2)
    agree(lambda *x: attend(*x, offsets=offsets), lambda *x: reference.attend(*x, offsets), q, k, v)


def test_runs_of_one_length_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, batches = [4, 4, 4, 2, 0, 0, 2, 5, 5, 1, 4], []
    dense = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, *rest, **options: batches.append(len(q)) or dense(q, *rest, **options),
    )
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    q, k, v = (random(sum(lengths), 2, 8, seed=seed) for seed in range(3))
    agree(
        lambda *x: attend(*x, offsets=offsets, backend="sdpa"),
        lambda *x: reference.attend(*x, offsets=offsets),
        q,
        k,
        v,
    )
    assert batches == [3, 1, 1, 2, 1, 1]


def test_packed_attention_of_nothing() -> None:
    x = random(0, 2, 8)
    assert attend(x, x, x, offsets=torch.zeros(3, dtype=torch.int32)).shape == (0, 2, 8)


def test_bias_and_scale() -> None:
    q, k, v, bias = random(2, 3, 2, 8), random(2, 5, 2, 8, seed=1), random(2, 5, 2, 8, seed=2), random(1, 2, 3, 5)
    agree(
        lambda q, k, v, bias: attend(q, k, v, bias=bias, scale=0.3),
        lambda q, k, v, bias: reference.attend(q, k, v, bias=bias, scale=0.3),
        q, k, v, bias,
    )  # fmt: skip


def test_strided_inputs_are_the_same_attention() -> None:
    qkv = torch.randn(2, 6, 3, 2, 8)
    q, k, v = qkv.unbind(2)
    assert torch.allclose(attend(q, k, v), attend(q.contiguous(), k.contiguous(), v.contiguous()), atol=1e-6)


def test_sigmoid_of_equal_logits_is_worked_by_hand() -> None:
    # q = 0: every logit is -log(m) with m = 3 keys, sigmoid(-log 3) = 1 / (1 + 3) = 0.25; three values of 1 give 0.75.
    q, ones = torch.zeros(1, 1, 1, 4), torch.ones(1, 3, 1, 4)
    assert torch.allclose(attend(q, ones, ones, activation="sigmoid"), torch.full((1, 1, 1, 4), 0.75))


@pytest.mark.parametrize("offsets", [[0, 5, 4, 9], [1, 9], [0, 8], [0.0, 9.0], [[0, 9]]])
def test_bad_offsets_are_refused(offsets: list) -> None:
    x = torch.randn(9, 1, 4)
    values = torch.tensor(offsets)
    with pytest.raises(ValueError, match="offsets"):
        attend(x, x, x, offsets=values.int() if values.dtype == torch.int64 else values)


def test_backends_are_chosen_refused_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    softmax = Request("cpu", "softmax", packed=False, bias=False)
    sigmoid = Request("cpu", "sigmoid", packed=False, bias=False)
    assert choose(softmax).name == "sdpa"
    assert choose(sigmoid).name == "reference"
    with pytest.raises(ValueError, match="sigmoid"):
        choose(sigmoid, "sdpa")
    with pytest.raises(ValueError, match="choose from"):
        choose(softmax, "cublas")
    monkeypatch.setenv("BELVEDERE_ATTENTION", "reference")
    assert choose(softmax).name == "reference"
    rows = explain(sigmoid)
    assert [name for name, _, _ in rows] == [backend.name for backend in BACKENDS]
    assert rows[0][1] is False and "softmax" in rows[0][2]


PACKED = Request("cuda", "softmax", packed=True, bias=False, dtype=torch.bfloat16)


def chain(monkeypatch: pytest.MonkeyPatch, request: Request, absent: str | None = None) -> str:
    """Return what serves ``request`` on a machine with an NVIDIA GPU and both packages, or without one of them."""
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: "no triton" if absent == "triton" else None)
    monkeypatch.setattr(backends, "_missing", lambda package: "no package" if package == absent else None)
    return choose(request).name


def test_on_a_gpu_packed_attention_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chain(monkeypatch, PACKED) == "triton"
    assert chain(monkeypatch, PACKED, "triton") == "xformers"
    wide = replace(PACKED, head=160)
    assert chain(monkeypatch, wide) == "xformers"
    assert chain(monkeypatch, wide, "xformers") == "flex"
    assert chain(monkeypatch, replace(PACKED, head=8), "triton") == "xformers"
    assert chain(monkeypatch, replace(wide, activation="sigmoid")) == "reference"


def test_on_a_gpu_dense_softmax_is_left_to_sdpa_where_that_is_faster_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = replace(PACKED, packed=False)
    for channels, name in ((64, "sdpa"), (72, "sdpa"), (60, "triton")):
        assert chain(monkeypatch, replace(dense, head=channels)) == name
        assert chain(monkeypatch, replace(dense, head=channels, dtype=torch.float32)) == "sdpa"
    alone = replace(dense, rows=1)
    assert chain(monkeypatch, alone) == "sdpa" and chain(monkeypatch, replace(alone, gradients=True)) == "triton"
    assert chain(monkeypatch, replace(dense, head=60), "triton") == "sdpa"
    assert chain(monkeypatch, replace(dense, activation="sigmoid")) == "triton"
    assert chain(monkeypatch, replace(dense, activation="sigmoid", bias=True)) == "reference"
    assert choose(dense, "triton").name == "triton"
    reasons = {name: reason for name, _, reason in explain(dense)}
    assert "sdpa is faster" in reasons["triton"] and reasons["xformers"] == "only for packed softmax"


def test_without_any_package_sdpa_serves_packed_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: "no triton")
    monkeypatch.setattr(backends, "_missing", lambda package: f"{package} is not installed")
    assert choose(PACKED).name == "sdpa"
    with pytest.raises(ValueError, match="xformers is not installed"):
        choose(PACKED, "xformers")


def test_what_reads_on_the_host_is_refused_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: None)
    monkeypatch.setattr(backends, "_missing", lambda package: None)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda on=capturing: on)
        for request in (PACKED, replace(PACKED, packed=False), replace(PACKED, device="cpu")):
            for backend in backends.BACKENDS:
                if capturing and request is PACKED and backend.name in ("xformers", "sdpa", "reference"):
                    with pytest.raises(RuntimeError, match=f"'{backend.name}' reads on the host where sequences begin"):
                        backends.check_recordable(backend, request)
                else:
                    backends.check_recordable(backend, request)


def test_attention_asks_whether_it_may_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    note = lambda backend, request: asked.append((backend.name, request.packed))  # noqa: E731
    monkeypatch.setattr(attention, "check_recordable", note)
    x = torch.randn(3, 2, 8)
    attend(x, x, x, offsets=torch.tensor([0, 3]), backend="sdpa")
    assert asked == [("sdpa", True)]


def test_a_bias_of_packed_sequences_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_missing", lambda package: None)
    for name in ("xformers", "flex", "sdpa"):
        with pytest.raises(ValueError, match="cannot serve this call: a bias for packed sequences is not supported"):
            choose(replace(PACKED, bias=True), name)
        if name != "sdpa":
            with pytest.raises(ValueError, match="only for packed softmax"):
                choose(replace(PACKED, packed=False, bias=True), name)


def test_a_request_tells_rows_and_whether_gradients_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    whole = attention.choose
    monkeypatch.setattr(attention, "choose", lambda request, name: asked.append(request) or whole(request, name))
    x = torch.randn(1, 3, 2, 8)
    attend(x, x, x)
    attend(x, x, x.clone().requires_grad_())
    with torch.no_grad():
        attend(x.expand(2, -1, -1, -1), *[x.expand(2, -1, -1, -1).clone().requires_grad_()] * 2)
    assert [(request.rows, request.gradients) for request in asked] == [(1, False), (1, True), (2, False)]


def test_what_needs_a_gpu_says_so_on_a_cpu() -> None:
    for name in ("triton", "xformers", "flex"):
        with pytest.raises(ValueError, match="NVIDIA GPU"):
            choose(replace(PACKED, device="cpu"), name)


def test_a_compiler_has_nothing_to_warn_of() -> None:
    """Why a backend or a kernel does not serve is found out while it compiles."""
    offsets, x = torch.tensor([0, 2, 5], dtype=torch.int32), torch.randn(5, 2, 16)

    def function(x: torch.Tensor) -> torch.Tensor:
        dense = attend(x[None], x[None], x[None])[0] + attend(x[None], x[None], x[None], activation="sigmoid")[0]
        return gated_mlp(dense + attend(x, x, x, offsets=offsets))

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = compiled(x)
    assert torch.allclose(got, function(x), atol=1e-6)


def test_a_compiler_has_nothing_to_warn_of_on_a_gpu() -> None:
    """Where more lines of the table ask what is installed."""
    torch.compiler.reset()
    compiled = torch.compile(lambda x: (x, choose(PACKED).name), fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(torch.ones(1))[1] in ("triton", "flex", "sdpa")


def test_a_forced_backend_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    sigmoid = Request("cpu", "sigmoid", packed=True, bias=False)
    monkeypatch.setenv("BELVEDERE_ATTENTION", "sdpa")  # which has none
    reasons = {name: (fits, reason) for name, fits, reason in explain(sigmoid)}
    assert reasons["sdpa"] == (False, "PyTorch's attention has no sigmoid activation")
    assert reasons["reference"] == (True, "fits, but BELVEDERE_ATTENTION names sdpa")
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: None)
    monkeypatch.setenv("BELVEDERE_ATTENTION", "triton")
    assert {name: reason for name, _, reason in explain(replace(PACKED, packed=False))}["triton"] == "chosen"


def test_deterministic_attention_leaves_xformers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(PACKED, head=160)  # wider than our kernel
    assert chain(monkeypatch, wide) == "xformers"
    torch.use_deterministic_algorithms(True)
    try:
        assert chain(monkeypatch, wide) == "flex"
        assert {name: reason for name, _, reason in explain(wide)}["xformers"].startswith("its gradients are not")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_missing_package_names_the_extra() -> None:
    assert "pip install 'belvedere[gpu]'" in str(backends._missing("no_such_package"))


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
def test_flex_attention_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda function: function)
    for lengths in ([3, 0, 1, 5], [0, 0, 9], [9]):
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        q, k, v = (random(9, 2, 16, seed=seed).detach() for seed in range(3))
        got = flex.attend(q, k, v, offsets, None, 0.3, "softmax")
        assert torch.allclose(got, reference.attend(q, k, v, offsets, scale=0.3), atol=1e-5)


def test_the_mask_of_xformers_is_made_once_for_each_tensor_of_offsets() -> None:
    pytest.importorskip("xformers", reason="xformers is not installed: pip install 'belvedere[gpu]'")
    from belvedere.kernels import fmha

    offsets = torch.tensor([0, 3, 3, 4, 9], dtype=torch.int32)
    mask = fmha.mask_of(offsets)
    assert mask is fmha.mask_of(offsets) and mask is not fmha.mask_of(offsets.clone())
    visible = mask.materialize((9, 9)).isfinite()
    sequence = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])
    assert torch.equal(visible, sequence[:, None] == sequence)
    offsets[1] = 2
    assert not torch.equal(fmha.mask_of(offsets).materialize((9, 9)).isfinite(), visible)


def test_matmul_needs_bfloat16_on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("cpu", "softmax", packed=False, bias=False, dtype=torch.bfloat16, keys=16)
    for capability, name in (("AVX512", "matmul"), ("AVX2", "sdpa"), ("DEFAULT", "sdpa")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        assert choose(request).name == name
    with pytest.raises(ValueError, match="without AVX-512"):
        choose(request, "matmul")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for change in ({"packed": True}, {"dtype": torch.float32}, {"keys": 1025}, {"device": "cuda"}):
        assert choose(replace(request, **change)).name == "sdpa"


def test_matmul_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    q, k, v = (random(2, n, 3, 8, dtype=torch.bfloat16, seed=i) for i, n in enumerate((4, 7, 7)))
    bias = random(1, 3, 4, 7, dtype=torch.bfloat16)
    agree(
        lambda q, k, v, bias: attend(q, k, v, bias=bias, scale=0.5, backend="matmul"),
        lambda q, k, v, bias: reference.attend(q, k, v, bias=bias, scale=0.5),
        q, k, v, bias,
    )  # fmt: skip


def test_packed_round_trip() -> None:
    sequences = [torch.randn(n, 3) for n in (2, 0, 5)]
    packed = Packed.pack(sequences)
    assert all(torch.equal(a, b) for a, b in zip(packed.unpack(), sequences, strict=True))
    assert packed.sequence_ids().tolist() == [0, 0, 2, 2, 2, 2, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs an NVIDIA GPU")
@pytest.mark.parametrize("channels", [60, 72, 96, 128])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_on_a_gpu_every_length_and_head_is_right(channels: int, activation: str) -> None:
    """Triton 3.6 compiled a loop's rest wrongly for heads in two parts, which no interpreter shows."""
    lengths = [256, 128, 249, 67, 1, 130]
    offsets = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    inputs = [torch.randn(sum(lengths), 4, channels, device="cuda").bfloat16().requires_grad_() for _ in range(3)]
    want = reference.attend(*(x.float() for x in inputs), offsets=offsets, activation=activation)
    got = attend(*inputs, offsets=offsets, activation=activation, backend="triton")
    grad = torch.randn_like(want)
    pulled = zip(
        torch.autograd.grad(got, inputs, grad.bfloat16()), torch.autograd.grad(want, inputs, grad), strict=True
    )
    for ours, theirs in ((got, want), *pulled):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 3e-2
