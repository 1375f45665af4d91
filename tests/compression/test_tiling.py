"""Tiles of a picture: they cover it, share what they must, blend without a seam, and a part asks for few of them."""

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.compression.tiling import Box, Layout, Span, assemble, ramps
from belvedere.errors import BitstreamError, InputError

LAYOUTS = st.builds(Layout, st.integers(256, 1024), st.integers(0, 64))


@given(LAYOUTS, st.integers(1, 20_000))
def test_tiles_cover_an_axis_with_the_overlap_asked_for(layout: Layout, length: int) -> None:
    spans = layout.spans(length)
    assert spans[0].start == 0 and spans[-1].stop == length
    assert {span.stop - span.start for span in spans} == {spans[0].stop}
    assert spans[0].stop <= layout.side
    assert layout.count(length, 300) == len(layout.boxes(length, 300))
    shared = [before.stop - after.start for before, after in pairwise(spans)]
    assert all(layout.overlap <= count <= layout.overlap + 1 for count in shared)
    assert not spans[2:] or spans[0].stop < spans[2].start + 1


@given(LAYOUTS, st.integers(1, 5000))
def test_weights_sum_to_one(layout: Layout, length: int) -> None:
    spans, total = layout.spans(length), np.zeros(length)
    for span, weight in zip(spans, ramps(spans), strict=True):
        assert (weight >= 0).all()
        total[span.start : span.stop] += weight
    assert np.allclose(total, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.data())
def test_tiles_of_one_picture_make_it_again_whole_and_in_part(width: int, height: int, data: st.DataObject) -> None:
    layout = Layout(256, 32)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes, asked = layout.boxes(width, height), []

    def row(numbers: Sequence[int]) -> list[np.ndarray]:
        asked.extend(numbers)
        return [picture[slice(*boxes[i].rows), slice(*boxes[i].columns)] for i in numbers]

    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    columns, rows = Span(x, data.draw(st.integers(x + 1, width))), Span(y, data.draw(st.integers(y + 1, height)))
    part = assemble(layout, (width, height), Box(rows, columns), row)
    assert (part == picture[slice(*rows), slice(*columns)]).all()
    meet = [
        i for i, box in enumerate(boxes)
        if all(a.start < b.stop and b.start < a.stop for a, b in zip(box, (rows, columns), strict=True))
    ]  # fmt: skip
    assert asked == meet


def test_an_overlap_is_a_crossfade() -> None:
    layout = Layout(256, 32)
    whole = Box(Span(0, 10), Span(0, 480))

    def row(numbers: Sequence[int]) -> list[np.ndarray]:
        return [np.full((10, 256, 3), 200 * i, np.uint8) for i in numbers]

    line = assemble(layout, (480, 10), whole, row)[0, :, 0].astype(int)
    assert (line[:224] == 0).all() and (line[256:] == 200).all()
    assert (np.diff(line) >= 0).all() and np.diff(line).max() <= 7


def test_a_wide_picture_takes_the_memory_of_one_row_of_tiles() -> None:
    layout = Layout(256, 32)
    size, tiles = (6000, 700), layout.boxes(6000, 700)

    def row(numbers: Sequence[int]) -> list[np.ndarray]:
        return [np.zeros([span.stop - span.start for span in tiles[i]] + [3], np.uint8) for i in numbers]

    tracemalloc.start()
    result = assemble(layout, size, Box(Span(0, 700), Span(0, 6000)), row)
    peak = tracemalloc.get_traced_memory()[1] - result.nbytes
    tracemalloc.stop()
    strip = 6000 * (tiles[0].rows.stop - tiles[0].rows.start)
    assert peak < 20 * strip  # 12 bytes a pixel in float32, 3 of the tiles, and the overlap


@pytest.mark.parametrize(("side", "overlap"), [(255, 0), (1025, 0), (512, 65), (512, -1)])
def test_layouts_that_no_file_has_are_refused(side: int, overlap: int) -> None:
    with pytest.raises(InputError, match="256 to 1024, and 0 to 64 allowed") as error:
        Layout(side, overlap)
    assert not isinstance(error.value, BitstreamError)
