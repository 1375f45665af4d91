"""Positions beyond the trained grid, by hand: what each mode does to the angles of each axis, and to their length."""

import math

import pytest
import torch

from belvedere.errors import InputError
from belvedere.generation.extrapolation import (
    EXTRAPOLATIONS,
    MODES,
    check_extrapolation,
    each,
    frequencies,
    grid_rotations,
)
from tests.generation.test_fitv2 import tiny

HEAD_DIM, THETA, TRAINED = 72, 10000.0, 16  # of the published XL/2: 18 frequencies an axis
PLAIN = THETA ** (-torch.arange(18, dtype=torch.float64) / 18)


def angles(size: tuple[int, int], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    down, right, _ = frequencies(size, HEAD_DIM, THETA, TRAINED, name)
    return down.double(), right.double()


def magnitude(size: tuple[int, int], name: str) -> float:
    return frequencies(size, HEAD_DIM, THETA, TRAINED, name)[2]


def test_plain_frequencies() -> None:
    down, right = angles((16, 16), "none")
    torch.testing.assert_close(down, PLAIN, rtol=1e-6, atol=0)
    assert torch.equal(down, right)


def test_interpolation_to_twice_the_length_halves_every_angle() -> None:
    torch.testing.assert_close(angles((32, 32), "pi")[0], PLAIN / 2, rtol=1e-6, atol=0)


def test_ntk_keeps_the_fastest_and_stretches_the_slowest_by_the_scale() -> None:
    stretch = PLAIN / angles((48, 48), "ntk")[0]
    assert stretch[0] == 1 and stretch[-1].item() == pytest.approx(3, rel=1e-6)
    assert (stretch.diff() > 0).all()


def test_ntk_keeps_a_single_frequency() -> None:
    down, _, _ = frequencies((32, 32), 4, THETA, TRAINED, "ntk")
    assert down.tolist() == [1.0]


def test_yarn_by_hand() -> None:
    # At 16 patches the ramp runs from pair 0 to pair 2: the fastest stays, one is in the middle, the rest are halved.
    keep = torch.tensor([1.0, 0.5] + [0.0] * 16, dtype=torch.float64)
    torch.testing.assert_close(angles((32, 32), "yarn")[0], PLAIN * (0.5 + 0.5 * keep), rtol=1e-6, atol=0)


def test_ntk_by_parts_by_hand() -> None:
    # The fastest stays; ramp from pair 1 to pair 3: pair 1 as by NTK, pair 2 in the middle, the rest halved.
    ntk = angles((32, 32), "ntk")[0]
    want = torch.cat((PLAIN[:1], ntk[1:2], (ntk[2:3] + PLAIN[2:3] / 2) / 2, PLAIN[3:] / 2))
    torch.testing.assert_close(angles((32, 32), "ntk-by-parts")[0], want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in MODES if name != "none"])
def test_without_vision_both_axes_have_the_scale_of_the_longer_side(name: str) -> None:
    square = angles((40, 40), name)[0]
    for size in ((40, 20), (20, 40)):
        assert all(torch.equal(axis, square) for axis in angles(size, name))


@pytest.mark.parametrize("name", [name for name in MODES if name != "none"])
def test_with_vision_each_axis_has_its_own(name: str) -> None:
    down, right = angles((16, 40), f"vision-{name}")
    assert torch.equal(down, angles((16, 16), "none")[0])
    assert torch.equal(right, angles((40, 40), name)[1])


@pytest.mark.parametrize("name", EXTRAPOLATIONS)
@pytest.mark.parametrize("size", [(16, 16), (8, 12), (1, 16)])
def test_up_to_the_trained_side_no_angle_changes(name: str, size: tuple[int, int]) -> None:
    assert all(map(torch.equal, angles(size, name), angles(size, "none")))


@pytest.mark.parametrize("name", ["pi", "ntk", "ntk-by-parts", "yarn", "vision-yarn"])
def test_up_to_the_trained_side_the_rotation_is_the_plain_one(name: str) -> None:
    plain = grid_rotations((3, 5), HEAD_DIM, THETA, TRAINED, "none")
    assert all(map(torch.equal, grid_rotations((3, 5), HEAD_DIM, THETA, TRAINED, name), plain))


@pytest.mark.parametrize(
    ("name", "size", "want"),
    [
        ("ntk-pro1", (16, 16), 1.1180),
        ("ntk-pro2", (16, 16), 1.0607),
        ("ntk-pro1", (20, 20), 1.15347),
        ("ntk-pro2", (20, 20), 1.09794),
        ("ntk-pro1", (8, 8), 1.0),
        ("ntk-pro2", (8, 16), 1.0),
        ("yarn", (16, 16), 1.0),
        ("yarn", (32, 8), 1 + 0.1 * math.log(2)),  # the longer side, also where each axis has its own scale
        ("vision-yarn", (8, 32), 1 + 0.1 * math.log(2)),
        ("ntk", (40, 40), 1.0),
    ],
)
def test_magnitudes(name: str, size: tuple[int, int], want: float) -> None:
    assert magnitude(size, name) == pytest.approx(want, abs=6e-5)


def test_magnitude_is_the_length_of_cos_and_sin() -> None:
    cos, sin = grid_rotations((4, 40), HEAD_DIM, THETA, TRAINED, "vision-yarn")
    torch.testing.assert_close(cos.hypot(sin), torch.full_like(cos, 1 + 0.1 * math.log(2.5)))


def test_rows_turn_the_first_half_and_columns_the_second() -> None:
    cos, sin = grid_rotations((2, 3), 8, 100.0, 16, "none")  # two frequencies an axis: 1 and 0.1
    assert cos.shape == sin.shape == (6, 1, 4)
    angle = torch.atan2(sin, cos)[:, 0]
    torch.testing.assert_close(angle[2], torch.tensor([0, 0, 2, 0.2]))
    torch.testing.assert_close(angle[3], torch.tensor([1, 0.1, 0, 0]))


def test_more_than_256_positions() -> None:
    cos, _ = grid_rotations((1, 1000), HEAD_DIM, THETA, TRAINED, "none")
    want = (999 * PLAIN).cos()
    torch.testing.assert_close(cos[-1, 0, 18:].double(), want, atol=1e-4, rtol=0)


def test_a_table_is_made_once() -> None:
    first, again = (grid_rotations((5, 7), HEAD_DIM, THETA, TRAINED, "ntk") for _ in range(2))
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_a_table_made_among_meta_tensors_is_a_real_one() -> None:
    grid_rotations.cache_clear()
    with torch.device("meta"):
        cos, _ = grid_rotations((2, 2), HEAD_DIM, THETA, TRAINED, "none")
    grid_rotations.cache_clear()
    assert cos.device.type == "cpu"


def test_angles_stay_float32_when_the_network_is_not() -> None:
    layout = tiny().to(torch.bfloat16).layout([(3, 2)], "ntk", "cpu")
    assert layout.cos.dtype == layout.sin.dtype == torch.float32


@pytest.mark.parametrize("name", ["NTK", "vision-none", ""])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown extrapolation '{name}': choose from none, pi, .*vision-yarn"):
        check_extrapolation(name)
    with pytest.raises(InputError, match="unknown extrapolation"):
        frequencies((2, 2), HEAD_DIM, THETA, TRAINED, name)


def test_one_name_for_all_or_one_each() -> None:
    assert each("ntk", 3) == ["ntk"] * 3
    assert each(("pi", "none"), 2) == ["pi", "none"]
    with pytest.raises(InputError, match="2 extrapolations for 3 images"):
        each(["pi", "none"], 3)


def test_each_image_has_the_positions_of_its_own_name() -> None:
    model, names, sizes = tiny(), ["vision-ntk", "none", "yarn"], [(8, 5), (8, 5), (3, 9)]
    layout = model.layout(sizes, names, "cpu")
    for i, part in enumerate(layout.cos.split([40, 40, 27])):
        assert torch.equal(part, model.layout([sizes[i]], names[i], "cpu").cos)
    assert not torch.equal(layout.cos[:40], layout.cos[40:80])
