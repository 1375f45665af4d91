"""Network calls of constant rows: who shares one, what guidance does in it, and how often modulation is evaluated."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.packed_sampling import Guidance, ModulationTable, PackedCall, alone, pieces, split
from tests.generation.test_fitv2 import tiny

SIZES = [(2, 3), (4, 4), (1, 5)]
LENGTHS = [6, 16, 5]
NULL = 4


def packed_call(network: FiTv2, guidance: Guidance, **changes: Any) -> PackedCall:
    """A call of three images, 27 tokens of 32."""
    given = {"sizes": SIZES, "labels": [0, 1, 2], "extrapolations": ["none"] * 3, "capacity": 32}
    return PackedCall(network, guidance=guidance, **(given | changes))


def tokens(lengths: list[int] = LENGTHS) -> list[Tensor]:
    return list(torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(0)).split(lengths))


def watch(network: FiTv2, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the list to which every call of the network adds its numbers of tokens and of images."""
    calls, run = [], network.run

    def watched(x: Tensor, rows: Tensor, layout: Any) -> Tensor:
        calls.append((len(x), len(rows)))
        return run(x, rows, layout)

    monkeypatch.setattr(network, "run", watched)
    return calls


def plain(network: FiTv2, x: Tensor, t: float, label: int, size: tuple[int, int]) -> Tensor:
    """The prediction for one image by itself, without guidance."""
    return network(x, torch.tensor([t]), torch.tensor([label]), sizes=[size])


# Who shares a call


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([300], [(0, 1)]),
        ([64, 64, 64, 64, 64], [(0, 4), (4, 5)]),
        ([128, 128, 128], [(0, 2), (2, 3)]),  # half the capacity is still small
        ([129, 100, 100], [(0, 1), (1, 3)]),
        ([100, 129, 100, 100], [(0, 1), (1, 2), (2, 4)]),
        ([100, 100, 100, 100], [(0, 2), (2, 4)]),
        ([300, 1, 300, 300], [(0, 1), (1, 2), (2, 3), (3, 4)]),
    ],
)
def test_split_by_hand(lengths: list[int], groups: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in split(lengths, 256)] == groups


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=12))
def test_split_keeps_the_order_and_fills_no_call_beyond_its_capacity(lengths: list[int]) -> None:
    parts = split(lengths, 32)
    assert [i for part in parts for i in part] == list(range(len(lengths)))
    for part in parts:
        inside = [lengths[i] for i in part]
        assert len(inside) == 1 if alone(max(inside), 32) else sum(inside) <= 32


# Guidance


def test_guidance_is_constant_inside_its_interval() -> None:
    guidance = Guidance(3.0, interval=(0.2, 0.6))
    assert [guidance.at(t) for t in (1 - 20 / 25, 1 - 10 / 25)] == [3, 3]  # 0.19999999999999996 and 0.6
    assert [guidance.at(t) for t in (0.0, 0.19, 0.2, 0.4, 0.6, 0.61, 1.0)] == [1, 1, 3, 3, 3, 1, 1]
    assert [Guidance(1.5).at(t) for t in (0.0, 1.0)] == [1.5, 1.5]


def test_guidance_with_a_power_falls_to_one() -> None:
    # 1 + 2 (1 - cos(pi (1 - t)^2)) / 2: (1 - t)^2 = 1 at t = 0, 1/2 at t = 1 - 1/sqrt 2, 0 at t = 1 and beyond.
    guidance = Guidance(3.0, power=2.0)
    assert [guidance.at(t) for t in (0.0, 1 - 0.5**0.5, 1.0, 1.5)] == pytest.approx([3, 2, 1, 1])
    assert Guidance(3.0, power=2.0, interval=(0.5, 1.0)).at(0.0) == 1


def test_guidance_past_the_end_is_that_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published dopri5 asks there."""
    assert Guidance(1.5).at(1.5) == 1.5
    assert Guidance(3.0, interval=(0.0, 0.5)).at(1.5) == 1
    assert Guidance(3.0, interval=(0.5, 1.0)).at(1.78) == 3
    network = tiny()
    calls = watch(network, monkeypatch)
    packed_call(network, Guidance(2.0)).velocity(torch.cat(tokens()), 1.5)
    assert calls == [(64, 8)]  # both halves


@pytest.mark.parametrize(
    "interval", [(0.6, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0), (0.5,), (0, 0.2, 1), "01", 0.5, ("0", 1)]
)
def test_bad_intervals(interval: Any) -> None:
    with pytest.raises(InputError, match="guidance interval"):
        Guidance(2.0, interval=interval)


def test_both_halves_are_one_call_and_weight_one_leaves_the_null_half_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny()
    calls = watch(network, monkeypatch)
    for weight in (2.0, 1.0):
        packed_call(network, Guidance(weight)).velocity(torch.cat(tokens()), 0.3)
    packed_call(network, Guidance(2.0, interval=(0.5, 1.0))).velocity(torch.cat(tokens()), 0.3)
    assert calls == [(64, 8), (32, 4), (32, 4)]  # with the filling image


@pytest.mark.parametrize("channels", [None, 3])
def test_guidance_leans_away_from_the_null_class(channels: int | None) -> None:
    network, x = tiny(), tokens()
    got = packed_call(network, Guidance(2.5, channels=channels)).velocities(x, [0.3, 0.5, 0.9], range(3))
    for i, t in enumerate((0.3, 0.5, 0.9)):
        conditional, null = (plain(network, x[i], t, label, SIZES[i]) for label in (i, NULL))
        want = null + 2.5 * (conditional - null)
        if channels:
            want[:, 12:] = conditional[:, 12:]
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-5)


def test_each_image_is_guided_by_the_weight_of_its_own_time() -> None:
    network, x, times = tiny(), tokens(), [0.1, 0.5, 0.9]
    guidance = Guidance(4.0, power=1.0, interval=(0.0, 0.8))
    got = packed_call(network, guidance).velocities(x, times, range(3))
    for i, t in enumerate(times):
        conditional, null = (plain(network, x[i], t, label, SIZES[i]) for label in (i, NULL))
        torch.testing.assert_close(got[i], null + guidance.at(t) * (conditional - null), atol=1e-5, rtol=1e-5)


# Rows


@pytest.mark.parametrize("weight", [1.0, 2.0])
@pytest.mark.parametrize(
    ("sizes", "rows"), [([(1, 1)], 32), (SIZES, 32), ([(4, 4), (4, 4)], 32), ([(1, 17)], 17), ([(9, 7)], 63)]
)
def test_rows_are_the_capacity_or_those_of_a_large_image(
    sizes: list[tuple[int, int]], rows: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, count = tiny(), len(sizes)
    calls = watch(network, monkeypatch)
    call = packed_call(network, Guidance(weight), sizes=sizes, labels=[0] * count, extrapolations=["none"] * count)
    call.velocity(torch.cat(tokens(call.lengths)), 0.5)
    assert [n for n, _ in calls] == [rows * (1 if weight == 1 else 2)]


def test_images_that_have_arrived_leave_their_rows_to_the_filling(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = tiny(), tokens()
    calls = watch(network, monkeypatch)
    call = packed_call(network, Guidance(1.0))
    every = call.velocities(x, [0.5] * 3, [0, 1, 2])
    assert torch.equal(call.velocities(x[2:], [0.5], [2])[0], every[2])
    assert [n for n, _ in calls] == [32, 32]


@pytest.mark.parametrize("refinement", [{}, {"refine_depth": 1, "refine_dim": 8}], ids=str)
def test_the_filling_of_a_large_call_attends_in_pieces(
    refinement: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of 256 tokens at the capacity of a GPU: no sequence is longer than it, and the rest is cut off."""
    network, layouts = tiny(**refinement), []
    (x,), run = tokens([256]), network.run
    want = plain(network, x, 0.5, 0, (16, 16))
    monkeypatch.setattr(network, "run", lambda x, rows, layout: layouts.append((rows, layout)) or run(x, rows, layout))
    call = packed_call(network, Guidance(1.0), sizes=[(16, 16)], labels=[0], extrapolations=["none"], capacity=8192)
    got = call.velocity(x, 0.5)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    ((rows, layout),) = layouts
    assert layout.offsets.diff().tolist() == [256] + [248] * 32 and len(rows) == 2
    assert layout.sizes.tolist() == [[16, 16], [1, 7936]]


def test_the_number_of_pieces_goes_by_the_capacity() -> None:
    assert pieces(250, 256) == [250] and pieces(0, 8192) == []
    for spare in (1, 31, 4095, 8191):
        lengths = pieces(spare, 8192)
        assert len(lengths) == 32 and sum(lengths) == spare and max(lengths) <= 256


def test_an_image_has_the_rows_it_has_alone_whatever_the_times_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image is inside the guidance interval, the second is not."""
    network, x, rows = tiny(), tokens(), list[int]()
    run = network.run

    def watched(x: Tensor, modulation: Tensor, layout: Any) -> Tensor:
        if LENGTHS[1] in layout.offsets.diff().tolist():
            rows.append(len(x))
        return run(x, modulation, layout)

    monkeypatch.setattr(network, "run", watched)
    call = packed_call(network, Guidance(2.0, interval=(0.0, 0.5)))
    call.velocities(x[1:2], [0.8], [1])
    call.velocities(x[:2], [0.2, 0.8], [0, 1])
    assert rows == [rows[0]] * 2


# Modulation


def test_a_table_is_one_product_a_class_and_block_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = tiny(), []
    modulate = network.modulate
    monkeypatch.setattr(network, "modulate", lambda t, y: calls.append((len(t), y[0].item())) or modulate(t, y))
    times = [n / 40 for n in range(40)]
    table = ModulationTable(network, times)
    for t in times:
        for label in (1, NULL):
            torch.testing.assert_close(table(t, label), modulate(torch.tensor([t]), torch.tensor([label]))[0])
    assert calls == [(32, 1), (32, NULL), (8, 1), (8, NULL)]


def test_a_time_that_was_not_announced_is_evaluated_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls = tiny(), []
    modulate = network.modulate
    monkeypatch.setattr(network, "modulate", lambda t, y: calls.append(t.tolist()) or modulate(t, y))
    table = ModulationTable(network, [0.0, 0.5])
    torch.testing.assert_close(table(0.25, 2), modulate(torch.tensor([0.25]), torch.tensor([2]))[0])
    assert calls == [[0.25]]


# What the network predicts


def test_a_clean_picture_is_a_velocity() -> None:
    x, t = tokens(), [0.0, 0.5, 0.999]
    sample = packed_call(tiny(prediction="sample"), Guidance(2.0)).velocities(x, t, range(3))
    raw = packed_call(tiny(), Guidance(2.0)).velocities(x, t, range(3))
    for i, distance in enumerate((1.0, 0.5, 0.01)):  # the last is no nearer than SHARPEST
        torch.testing.assert_close(sample[i], (raw[i] - x[i]) / distance)


def test_a_velocity_is_a_clean_picture() -> None:
    x = torch.cat(tokens())
    velocity = packed_call(tiny(), Guidance(2.0))
    torch.testing.assert_close(velocity.clean(x, 0.25), x + 0.75 * velocity.velocity(x, 0.25))
    sample = packed_call(tiny(prediction="sample"), Guidance(2.0))
    assert torch.equal(sample.clean(x, 0.25), velocity.velocity(x, 0.25))


def test_a_bf16_network_gives_float32() -> None:
    call = packed_call(tiny().to(torch.bfloat16), Guidance(2.0))
    assert call.velocity(torch.cat(tokens()), 0.5).dtype == torch.float32
