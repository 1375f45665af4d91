"""Where images begin, found by a kernel, and their sums over chunks, in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels.triton.reduce import CHUNK, STARTS, segments_of

LENGTHS = st.lists(st.sampled_from([0, 0, 1, 2, CHUNK - 1, CHUNK, 70, STARTS - 1, STARTS, STARTS + 1]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_images_begin_where_their_first_row_is_or_would_be(lengths: list[int]) -> None:
    index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    segments = segments_of(len(index), len(lengths), index)
    assert segments.starts is not None
    assert segments.starts.tolist() == torch.tensor([0, *lengths]).cumsum(0).tolist()
    assert segments.slots >= sum(-(-length // CHUNK) for length in lengths)


@given(st.integers(0, 5), st.integers(0, 100), st.sampled_from([None, 1, 16]))
def test_images_of_one_length_need_no_table(count: int, length: int, chunk: int | None) -> None:
    segments = segments_of(count * length, count, None, chunk)
    assert segments.starts is None and (segments.images, segments.length) == (count, length if count else 0)
    assert segments.slots == count * -(-length // (chunk or CHUNK))
