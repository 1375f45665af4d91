"""Recorded calls: which share a recording, how many are kept, and when a call is made as it stands."""

import copy
from collections import OrderedDict
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from belvedere import kernels
from belvedere.kernels import graphs
from belvedere.kernels.graphs import MOST, Graphs, kind_of, recall, why_not

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="recording needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELVEDERE_GRAPHS", raising=False)


def test_it_is_off_where_it_is_switched_off_and_where_our_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not("cpu") == "they need an NVIDIA GPU"
    monkeypatch.setenv("BELVEDERE_GRAPHS", "0")
    assert why_not("cpu") == why_not("cuda") == "switched off by BELVEDERE_GRAPHS=0"


def test_it_is_off_where_the_attention_that_is_named_reads_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "why_not_fused", lambda device, dtype: None)
    for name in ("", "triton", "split", "flex"):
        monkeypatch.setenv("BELVEDERE_ATTENTION", name)
        assert why_not("cuda") is None
    for name in ("sdpa", "reference", "xformers"):
        monkeypatch.setenv("BELVEDERE_ATTENTION", name)
        assert why_not("cuda") == f"BELVEDERE_ATTENTION={name} reads on the host where sequences begin"


def test_calls_share_a_recording_by_shapes_types_and_what_else_they_depend_on() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)
    assert kind_of((x, y), ()) == kind_of((x + 1, y + 1), ())
    others = [(x[:1], y), (x.T, y), (x.double(), y), (x, y.int()), (y, x), (x,)]
    kinds = {kind_of((x, y), ()), kind_of((x, y), ((2, 3),)), *(kind_of(inputs, ()) for inputs in others)}
    assert len(kinds) == 2 + len(others)


def test_what_was_used_last_is_kept() -> None:
    kept: OrderedDict[object, str] = OrderedDict()
    made: list[int] = []

    def ask(kind: int) -> str:
        return recall(kept, kind, lambda: made.append(kind) or f"recording {kind}")

    for kind in [*range(MOST), 0, MOST, 0, 1]:  # 0 is used again before there are too many, 1 is not
        assert ask(kind) == f"recording {kind}"
    assert made == [*range(MOST), MOST, 1]
    assert len(kept) == MOST and list(kept)[-2:] == [0, 1]


def function(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1).tanh()


def test_on_a_cpu_under_grad_and_under_a_compiler_it_is_the_call_itself() -> None:
    play, network = Graphs(), nn.Linear(2, 2)
    play.follow(network)
    x, y = torch.randn(3, 4), torch.randn(4, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(play(function, x, y), function(x, y))
        compiled = torch.compile(lambda x, y: play(function, x, y), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, y), function(x, y))
    (got,), (want,) = (torch.autograd.grad(f(x, y).sum(), y) for f in (lambda *i: play(function, *i), function))
    assert torch.equal(got, want)
    assert play._kept == {}


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def on_gpu(*shape: int) -> Tensor:
    return torch.randn(shape).as_subclass(OnGpu)


@torch.no_grad()
def test_under_autocast_it_is_the_call_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    network, play, x = nn.Linear(4, 4), Graphs(), on_gpu(3, 4)
    play._weights = (1,)
    record = mock.Mock(return_value=None)
    monkeypatch.setattr(play, "_record", record)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(play(network, x), network(x)) and play(network, x).dtype == torch.bfloat16
    record.assert_not_called()
    assert torch.equal(play(network, x), network(x))
    record.assert_called_once()


class Broken:
    """A function whose call fails where it is captured."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == graphs.WARM_UP + 1:
            raise RuntimeError("operation not permitted\nwhen capturing")
        return x.tanh()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> mock.MagicMock:
    """What stands in for ``torch.cuda``."""
    cuda = mock.MagicMock()
    for name in ("device", "stream", "graph"):
        getattr(cuda, name).return_value.__exit__.return_value = False
    for name in ("Stream", "graph_pool_handle"):
        getattr(cuda, name).side_effect = lambda: mock.MagicMock()
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda


@torch.no_grad()
def test_recordings_share_a_stream_of_their_own_device_and_memory_and_are_made_one_at_a_time(
    cuda: mock.MagicMock,
) -> None:
    play, others = Graphs(), Graphs()
    play._weights = others._weights = (1,)
    locked: list[bool] = []

    def call(x: Tensor) -> Tensor:
        locked.append(graphs.CAPTURING.locked())
        return x.tanh()

    for graph, shape in ((play, (3, 4)), (play, (2, 4)), (others, (3, 4))):
        graph(call, on_gpu(*shape))
    first, second, third = (one.kwargs for one in cuda.graph.call_args_list)
    assert first == second and first["stream"] is not third["stream"] and first["pool"] is not third["pool"]
    assert first["stream"] == cuda.stream.call_args_list[0].args[0]  # what it was warmed up on
    assert locked == ([False] * graphs.WARM_UP + [True]) * 3 and not graphs.CAPTURING.locked()


@torch.no_grad()
@pytest.mark.parametrize("spoiled", [False, True])
def test_what_cannot_be_recorded_is_called_and_told_once(
    spoiled: bool, cuda: mock.MagicMock, caplog: pytest.LogCaptureFixture
) -> None:
    if spoiled:  # then to end the capture fails as well
        cuda.graph.return_value.__exit__.side_effect = RuntimeError("operation not permitted")
    play = Graphs()
    play._weights = (1,)
    for shape in ((3, 4), (2, 4)):
        broken, x = Broken(), on_gpu(*shape)
        for later in range(3):
            assert torch.equal(play(broken, x), x.tanh())
            assert broken.calls == graphs.WARM_UP + 2 + later
        cuda.set_stream.assert_called_with(cuda.current_stream.return_value)
        assert play._place is None and not graphs.CAPTURING.locked()
    assert list(play._kept.values()) == [None, None]
    told = "calls are made without a CUDA graph, recording failed: operation not permitted"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_a_copy_has_recorded_nothing() -> None:
    play = Graphs()
    play._kept["kind"] = graphs.Recording(None, [], torch.zeros(1))
    for other in (copy.copy(play), copy.deepcopy(play)):
        assert other._kept == {} and other is not play


@gpu
@torch.no_grad()
def test_played_is_what_was_called() -> None:
    network, play = nn.Linear(4, 4).cuda(), Graphs()
    play.follow(network)

    def call(x: Tensor, shift: Tensor) -> Tensor:
        return network(x) + shift

    for seed in range(4):
        torch.manual_seed(seed)
        x, shift = torch.randn(3, 4, device="cuda"), torch.randn(4)  # the second comes from the host
        torch.testing.assert_close(play(call, x, shift), call(x, shift.cuda()))
    assert len(play._kept) == 1
    first, second = (play(call, torch.full((3, 4), n, device="cuda"), shift) for n in (1.0, 2.0))
    assert not torch.equal(first, second)


@gpu
def test_what_was_recorded_in_inference_mode_is_played_outside_of_it() -> None:
    network, play = nn.Linear(4, 4).cuda(), Graphs()
    play.follow(network)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            x = torch.randn(3, 4, device="cuda")
            torch.testing.assert_close(play(network, x), network(x))
    assert len(play._kept) == 1


@gpu
@torch.no_grad()
def test_weights_that_moved_are_not_played() -> None:
    network, play = nn.Linear(4, 4).cuda(), Graphs()
    x = torch.randn(3, 4, device="cuda")
    play.follow(network)
    play(network, x)
    kept = network.weight.data
    network.weight.data = torch.zeros_like(kept)
    play.follow(network)
    assert play._kept == {}
    torch.testing.assert_close(play(network, x), network.bias.expand(3, 4))
    network.cpu()
    play.follow(network)
    assert play._kept == {} and play._weights == ()


@gpu
@torch.no_grad()
def test_what_reads_on_the_host_is_called_and_others_are_still_recorded() -> None:
    network, play = nn.Linear(4, 4).cuda(), Graphs()
    play.follow(network)
    offsets = torch.tensor([0, 2, 5], device="cuda", dtype=torch.int32)
    here = torch.cuda.current_stream()

    def packed(q: Tensor, offsets: Tensor) -> Tensor:
        return kernels.attend(q, q, q, offsets=offsets, backend="sdpa")

    for seed in range(3):
        torch.manual_seed(seed)
        q, x = torch.randn(5, 2, 8, device="cuda"), torch.randn(3, 4, device="cuda")  # generators still draw
        torch.testing.assert_close(play(packed, q, offsets), packed(q, offsets))
        torch.testing.assert_close(play(network, x), network(x))
        assert torch.cuda.current_stream() == here
    assert [recording is None for recording in play._kept.values()] == [True, False]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it needs two NVIDIA GPUs")
@torch.no_grad()
def test_what_is_recorded_on_a_second_device_is_played_there() -> None:
    for device in ("cuda:0", "cuda:1"):
        network, play = nn.Linear(4, 4).to(device), Graphs()
        play.follow(network)
        for seed in range(2):
            x = torch.full((3, 4), float(seed), device=device)
            torch.testing.assert_close(play(network, x), network(x))
        assert list(play._kept.values()) != [None]
