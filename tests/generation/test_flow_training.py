import pytest
import torch

from belvedere.errors import InputError
from belvedere.generation.flow_training import flow_loss, flow_times
from belvedere.kernels.packed import Packed
from belvedere.seeds import BatchRng


@pytest.mark.parametrize(
    ("kind", "quartiles"),
    [("lognorm", torch.sigmoid(torch.tensor([-0.6745, 0.0, 0.6745])).tolist()), ("uniform", [0.25, 0.5, 0.75])],
)
def test_times_have_their_distribution_and_belong_to_the_sample(kind: str, quartiles: list[float]) -> None:
    t = flow_times(BatchRng(0, 5, range(4000)), kind)  # type: ignore[arg-type]
    assert t.shape == (4000,) and t.dtype == torch.float32
    torch.testing.assert_close(flow_times(BatchRng(0, 5, [7, 3]), kind), t[[7, 3]])  # type: ignore[arg-type]
    got = torch.quantile(t, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(got, torch.tensor(quartiles), atol=0.02, rtol=0)


def test_mean_moves_the_times() -> None:
    rng = BatchRng(0, 0, range(50))
    got = torch.logit(flow_times(rng, mean=-0.5)) - torch.logit(flow_times(rng))
    torch.testing.assert_close(got, torch.full((50,), -0.5), atol=1e-5, rtol=0)


def test_unknown_times_are_named() -> None:
    with pytest.raises(InputError, match="'cosine'"):
        flow_times(BatchRng(0, 0, [0]), "cosine")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_mean_over_each_images_tokens(dtype: torch.dtype) -> None:
    images = [torch.randn(n, 16) for n in (5, 1, 0, 12)]
    prediction, offsets = Packed.pack(images)
    prediction = prediction.to(dtype).requires_grad_()
    target = torch.randn(18, 16)
    loss = flow_loss(prediction, target, offsets)
    assert loss.dtype == torch.float32
    parts = zip(prediction.split([5, 1, 0, 12]), target.split([5, 1, 0, 12]), strict=True)
    want = torch.stack([(p.float() - t).square().mean() if len(p) else torch.zeros(()) for p, t in parts])
    torch.testing.assert_close(loss, want)
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5])
    (got,) = torch.autograd.grad((loss * weights).sum(), prediction)
    (expected,) = torch.autograd.grad((want * weights).sum(), prediction)
    torch.testing.assert_close(got, expected)


def test_loss_gradient() -> None:
    prediction = torch.randn(6, 3, requires_grad=True)
    offsets = torch.tensor([0, 2, 6], dtype=torch.int32)
    (gradient,) = torch.autograd.grad(flow_loss(prediction, torch.zeros(6, 3), offsets).sum(), prediction)
    share = torch.tensor([2, 2, 4, 4, 4, 4])[:, None]
    torch.testing.assert_close(gradient, 2 * prediction.detach() / (3 * share))


def test_loss_refuses_offsets_of_another_batch() -> None:
    with pytest.raises(ValueError, match="offsets"):
        flow_loss(torch.zeros(4, 2), torch.zeros(4, 2), torch.tensor([0, 3], dtype=torch.int32))
