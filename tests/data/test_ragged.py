"""Ragged batches: what is packed comes out again."""

import torch

from belvedere.data.ragged import pack_images, unpack_images


def test_what_is_packed_is_unpacked() -> None:
    images = [torch.randn(3, height, width) for height, width in ((2, 5), (1, 1), (7, 3), (2, 5))]
    images[2] = images[2].mT.contiguous().mT  # not contiguous
    flat, sizes = pack_images(images)
    assert flat.shape == (3 * (10 + 1 + 21 + 10),)
    assert sizes.dtype == torch.int64 and sizes.tolist() == [[2, 5], [1, 1], [7, 3], [2, 5]]
    for image, found in zip(images, unpack_images(flat, sizes, 3), strict=True):
        assert torch.equal(image, found)


def test_unpacked_pictures_are_views() -> None:
    flat, sizes = pack_images([torch.zeros(2, 3, 4), torch.zeros(2, 1, 2)])
    unpack_images(flat, sizes, 2)[1][1, 0, 1] = 5
    assert flat.tolist() == [0] * 27 + [5]


def test_nothing_packed_is_nothing_unpacked() -> None:
    flat, sizes = pack_images([])
    assert flat.shape == (0,) and sizes.shape == (0, 2) and sizes.dtype == torch.int64
    assert unpack_images(flat, sizes, 3) == []
