"""Prototypes of grid cells and regions, by hand."""

import pytest
import torch

from belvedere.compression.regions import Grid, Regions, places
from belvedere.errors import InputError

LABELS = torch.tensor([[[0, 0, 2], [0, 2, 2]], [[1, 1, 1], [0, 0, 0]]])
X = torch.arange(12.0).view(2, 1, 2, 3)


def test_means_over_regions() -> None:
    regions = Regions.of(LABELS)
    assert regions.counts == [3, 2]
    # Areas 3, 0, 3 and 3, 3; sums 0 + 1 + 3, 2 + 4 + 5, 9 + 10 + 11, 6 + 7 + 8. The empty region's prototype is 0.
    want = torch.tensor([4 / 3.0005, 0, 11 / 3.0005, 30 / 3.0005, 21 / 3.0005])
    assert torch.allclose(regions.pool(X).flatten(), want)


def test_every_pixel_gets_the_prototype_of_its_region() -> None:
    spread = Regions.of(LABELS).spread(torch.arange(5.0).view(5, 1, 1, 1), (2, 3))
    assert spread.tolist() == [[[[0, 0, 2], [0, 2, 2]]], [[[4, 4, 4], [3, 3, 3]]]]


def test_gradients_return_to_the_pixels() -> None:
    x = X.clone().requires_grad_()
    regions = Regions.of(LABELS)
    regions.spread(regions.pool(x), (2, 3)).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 3 / 3.0005))


def test_grid_means_and_nearest_cells() -> None:
    cells = Grid(2, [1, 1])
    assert cells.pool(X).flatten(1).tolist() == [[0.5, 1.5, 3.5, 4.5], [6.5, 7.5, 9.5, 10.5]]  # middle column in both
    spread = cells.spread(torch.arange(4.0).view(1, 1, 2, 2), (2, 3))
    assert spread.tolist() == [[[[0, 0, 1], [2, 2, 3]]]]  # floor(2 j / 3): 0, 0, 1


def test_label_maps_are_reduced_by_every_fourth_pixel() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.int32)
    labels[:, 4:8, 4:8] = 3  # at a quarter one pixel, at a sixteenth none: fewer regions
    labels[:, 17:20, 17:20] = 5  # between the pixels that are taken
    quarter, sixteenth = places(torch.zeros(1, 3, 64, 64), labels, 4)
    assert isinstance(quarter, Regions) and isinstance(sixteenth, Regions)
    assert quarter.counts == [4] and quarter.row.sum() == 3 and quarter.row[0, 1, 1] == 3
    assert sixteenth.counts == [1] and sixteenth.row.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1, 64, 32, dtype=torch.long), r"\(1, 64, 32\) torch.int64: must be integers \(1, 64, 64\)"),
        (torch.zeros(1, 64, 64), "torch.float32: must be integers"),
        (torch.full((1, 64, 64), -1), "labels -1 to -1: number them 0"),
        (torch.full((1, 64, 64), 9_000_000), "labels 9000000 to 9000000: number them 0"),
    ],
)
def test_bad_label_maps(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        places(torch.zeros(1, 3, 64, 64), labels, 4)


def test_bad_grid() -> None:
    with pytest.raises(InputError, match="grid 0: must be from 1 to 64"):
        places(torch.zeros(1, 3, 64, 64), None, 0)
