"""Tokens of pictures by hand, and the images of a padded batch, wherever their tokens stand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.errors import InputError
from belvedere.generation.tokens import Padded, offsets_of, patchify, unpatchify

SIDES = st.integers(1, 5)
# Row 0: image 1 at places 0 and 2, image 2 at place 1; row 1: image 3 at places 1 and 2; row 2: nothing.
MASK = torch.tensor([[1, 2, 1, 0], [0, 3, 3, 0], [0, 0, 0, 0]])


def test_patches_by_hand() -> None:
    picture = torch.stack((torch.arange(8), torch.arange(100, 108))).view(2, 2, 4)
    assert patchify(picture, 2).tolist() == [[0, 1, 4, 5, 100, 101, 104, 105], [2, 3, 6, 7, 102, 103, 106, 107]]
    assert patchify(torch.arange(8).view(1, 4, 2), 2).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_patches_go_back_to_the_picture(c: int, height: int, width: int, patch: int) -> None:
    picture = torch.randn(c, height * patch, width * patch)
    tokens = patchify(picture, patch)
    assert tokens.shape == (height * width, c * patch**2)
    assert torch.equal(unpatchify(tokens, (height, width), patch), picture)


def test_patches_of_a_crop() -> None:
    picture = torch.randn(3, 9, 7)
    crop = picture[:, 1:5, 2:6]
    assert torch.equal(patchify(crop, 2), patchify(crop.contiguous(), 2))


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5), (0, 4), (4, 0)])
def test_pictures_that_cannot_be_cut(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"a picture of {width}x{height} cannot be cut into 2x2 patches"):
        patchify(torch.zeros(3, height, width), 2)


def test_offsets() -> None:
    offsets = offsets_of([3, 0, 2])
    assert offsets.tolist() == [0, 3, 3, 5] and offsets.dtype == torch.int32
    assert offsets_of([]).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_images_of_a_padded_batch(dtype: torch.dtype) -> None:
    places = Padded.of(MASK.to(dtype))
    assert places.order.tolist() == [0, 2, 1, 5, 6]
    assert places.offsets.tolist() == [0, 2, 3, 5]
    assert places.sequence.tolist() == [0, 0, 1]


def test_one_image_a_row_of_a_boolean_mask() -> None:
    places = Padded.of(MASK > 0)
    assert places.offsets.tolist() == [0, 3, 5] and places.sequence.tolist() == [0, 1]


def test_padding_alone_has_no_images() -> None:
    places = Padded.of(torch.zeros(2, 3))
    assert places.offsets.tolist() == [0] and len(places.order) == len(places.sequence) == 0


def test_taking_packs_and_putting_pads_with_zeros() -> None:
    places, values = Padded.of(MASK), torch.arange(1.0, 25).view(3, 4, 2)
    tokens = places.take(values)
    assert tokens[:, 0].tolist() == [1, 5, 3, 11, 13]
    assert torch.equal(places.put(tokens, MASK), values * (MASK > 0)[..., None])
