"""SegPIC: published sizes, regions and grids, noise, training, what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.compression.regions import Grid
from belvedere.compression.segpic import RegionAdaptiveTransform, SegPIC, loss, parameter_groups, rate_distortion
from belvedere.compression.segpic_config import VARIANTS
from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from tests.kernels.test_region import Sizes

SMALL: dict[str, Any] = {
    "channels": 8, "latent": 12, "head": 4, "hyper": [10, 8, 8, 6], "prototype": [8, 4], "context": [8, 8, 6, 6],
    "slices": 3, "support": 2, "heads": 2, "windows": [4, 2], "grid": 2,
}  # fmt: skip


def small(**changes: Any) -> SegPIC:
    torch.manual_seed(0)
    return SegPIC(**(SMALL | changes)).eval()


def pictures(batch: int = 1, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def halves(batch: int = 1) -> Tensor:
    """Two regions side by side in every picture, three in the first."""
    regions = torch.zeros(batch, 64, 64, dtype=torch.int64)
    regions[:, :, 32:] = 1
    regions[0, 48:] = 2
    return regions


@pytest.mark.parametrize(
    ("name", "count"),
    [("SegPIC", 83_503_971), ("SegPIC/4", 5_264_883), ("SegPIC/8", 1_333_435), ("photo", 7_154_883)],
)
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = SegPIC.from_variant(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert set(VARIANTS) == {"SegPIC", "SegPIC/4", "SegPIC/8", "photo"}


def test_the_constructor_alone_makes_the_published_network() -> None:
    with torch.device("meta"):
        assert {
            k: list(v) if isinstance(v, tuple) else v for k, v in SegPIC().config.items() if k in VARIANTS["SegPIC"]
        } == (VARIANTS["SegPIC"])


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (192, 64)])
def test_shapes(size: tuple[int, int]) -> None:
    height, width = size
    with torch.no_grad():
        coded = small()(pictures(2, *size))
    assert coded.reconstruction.shape == (2, 3, *size)
    assert {name: tuple(x.shape) for name, x in coded.likelihoods.items()} == {
        "prototypes1": (2, 4, 2, 2),
        "prototypes2": (2, 4, 2, 2),
        "z": (2, 6, height // 64, width // 64),
        "y": (2, 12, height // 16, width // 16),
    }


@pytest.mark.parametrize("regions", [None, halves(3)])
def test_a_batch_is_its_pictures_one_by_one(regions: Tensor | None) -> None:
    model, x = small(), pictures(3)
    with torch.no_grad():
        together = model(x, regions)
        alone = [model(x[i : i + 1], None if regions is None else regions[i : i + 1]) for i in range(3)]
    assert torch.allclose(together.reconstruction, torch.cat([one.reconstruction for one in alone]), atol=1e-5)
    for name, likelihood in together.likelihoods.items():
        assert torch.allclose(likelihood, torch.cat([one.likelihoods[name] for one in alone]), rtol=1e-4)


def test_one_single_region_is_a_grid_of_one_cell() -> None:
    model, x = small(), pictures()
    with torch.no_grad():
        grid, regions = model(x, grid=1), model(x, torch.zeros(1, 64, 64, dtype=torch.int64))
    assert torch.allclose(grid.reconstruction, regions.reconstruction, atol=1e-3)  # area + 0.0005 in one of them


def test_noise_changes_the_rate_and_not_the_picture() -> None:
    model, x = small(), pictures(2)
    with torch.no_grad():
        rounded, noisy = model(x, halves(2)), model(x, halves(2), rng=BatchRng(0, 0, [0, 1]))
        alone = model(x[1:], halves(2)[1:], rng=BatchRng(0, 0, [1]))
    assert torch.equal(noisy.reconstruction, rounded.reconstruction)
    for name in ("y", "z", "prototypes1", "prototypes2"):
        assert not torch.equal(noisy.likelihoods[name], rounded.likelihoods[name])
        assert torch.allclose(
            noisy.likelihoods[name][-len(alone.likelihoods[name]) :], alone.likelihoods[name], rtol=1e-4
        )


@pytest.mark.parametrize("regions", [True, False])
def test_every_parameter_trains(regions: bool) -> None:
    model = small().train()
    batch = {"image": 2 * pictures(2) - 1} | ({"regions": halves(2)} if regions else {})
    loss(model, batch, BatchRng(0, 0, [0, 1]))[0].backward()
    wrong = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []


def test_loss_falls() -> None:
    model = small().train()
    groups = [group | {"lr": 3e-3 * group["lr_scale"]} for group in parameter_groups(model, 0.0)]
    optimizer = torch.optim.Adam(groups)
    batch = {"image": 2 * pictures() - 1, "regions": halves()}
    seen = []
    for _ in range(10):
        value, logs = loss(model, batch, BatchRng(0, 0, [0]))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append(logs)
    assert seen[-1]["loss"] < 0.9 * seen[0]["loss"] and seen[-1]["auxiliary"] < seen[0]["auxiliary"]


def test_loss_by_hand() -> None:
    model, x = small(), pictures()
    with torch.no_grad():
        coded = model(x)
        value, logs = rate_distortion(coded, x, 0.01)
    bits = sum(-likelihood.double().log2().sum().item() for likelihood in coded.likelihoods.values())
    assert logs["bpp"] == pytest.approx(bits / 64**2, rel=1e-5)
    assert logs["mse"] == pytest.approx((coded.reconstruction - x).square().mean().item(), rel=1e-5)
    assert value.item() == pytest.approx(0.01 * 65025 * logs["mse"] + logs["bpp"], rel=1e-5)


def test_quantiles_are_a_group_of_their_own() -> None:
    model = small()
    rest, quantiles = parameter_groups(model, 0.1)
    assert [p.shape for p in quantiles["params"]] == [(4, 1, 3), (4, 1, 3), (6, 1, 3)]
    assert (rest["weight_decay"], quantiles["weight_decay"], quantiles["lr_scale"]) == (0.1, 0.0, 10.0)
    assert len(rest["params"]) + 3 == len(list(model.parameters()))


def test_the_rate_moves_no_quantile_in_training() -> None:
    model, x = small().train(), pictures()
    rate_distortion(model(x, rng=BatchRng(0, 0, [0])), x, 0.01)[0].backward()
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith(".quantiles")]
    assert all(gradient is None or gradient.abs().max() == 0 for gradient in gradients)


def test_autocast_keeps_rounding_and_rates_precise() -> None:
    model, x = small(), pictures()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        coded = model(x, rng=BatchRng(0, 0, [0]))
    assert all(likelihood.dtype == torch.float32 for likelihood in coded.likelihoods.values())
    with torch.no_grad():
        want = model(x, rng=BatchRng(0, 0, [0]))
    assert (coded.reconstruction - want.reconstruction).norm() < 0.2 * want.reconstruction.norm()


def test_a_transform_makes_no_map_of_many_channels() -> None:
    transform, x = RegionAdaptiveTransform(16), torch.randn(1, 16, 40, 40)
    with torch.no_grad(), Sizes() as sizes:
        transform(x, torch.randn(1, 16, 4, 4), Grid(4, [1]))
    assert max(sizes.seen) <= 16 * 42 * 42  # not even that of 2 c channels, features and prototypes together


def test_saves_and_loads(tmp_path: Any) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    again = SegPIC.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(pictures()).reconstruction, model(pictures()).reconstruction)


@pytest.mark.slow
def test_compiles_to_one_graph_and_exports() -> None:
    model, x = small(), pictures()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        for other in (compiled, exported):
            assert torch.allclose(other(x).reconstruction, model(x).reconstruction, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "channels 0: must be an integer from 1"),
        ({"slices": 5}, "latent 12: must be a multiple of the 5 slices"),
        ({"heads": 3}, "channels 8: must be even and a multiple of the 3 heads"),
        ({"hyper": [8, 8]}, r"hyper \[8, 8\]: must be 4 integers"),
        ({"context": [8, 8, 8, 0]}, "context .*: must be 4 integers from 1"),
        ({"prototype": "wide"}, "prototype 'wide': must be 2 integers"),
        ({"windows": [6, 2]}, r"windows \[6, 2\]: the first must divide 16"),
        ({"grid": 2.0}, "grid 2.0: must be an integer"),
        ({"support": -1}, "support -1: must be an integer from 0"),
    ],
)
def test_bad_configs_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**change)


@pytest.mark.parametrize("shape", [(1, 3, 64, 65), (1, 3, 32, 64), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_pictures_the_model_cannot_do(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="sides multiples of 64"):
        small()(torch.zeros(shape))


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match="no SegPIC variant 'XL': choose from SegPIC, "):
        SegPIC.from_variant("XL")
