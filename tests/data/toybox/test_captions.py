import numpy as np
import pytest
import torch

from belvedere.data.toybox import KINDS
from belvedere.data.toybox.captions import (
    CAPTION_BYTES,
    CAPTION_COLORS,
    CLIP_TEMPLATES,
    GROUND_WORDS,
    PLAIN_TEMPLATES,
    CaptionedToybox,
    caption_bytes,
    caption_texts,
    describe,
    words,
)
from belvedere.data.toybox.palette import COLORS
from belvedere.data.toybox.scene import GROUNDS, Look, build
from belvedere.errors import InputError

TOYS = CaptionedToybox(16, samples=1, seed=3)


def test_an_item_is_a_row_of_any_batch() -> None:
    batch, item = TOYS.batch([5, 41, 7]), TOYS[41]
    assert torch.equal(batch["image"][1], item["image"]) and item["label"] == 41 % 12 == int(batch["label"][1])
    assert caption_texts(batch["caption"])[1] == item["caption"]
    again = CaptionedToybox(16, samples=1, seed=3)[41]
    assert torch.equal(again["image"], item["image"]) and again["caption"] == item["caption"]
    assert CaptionedToybox(16, samples=1, seed=4)[41]["caption"] != item["caption"]


def test_every_colour_and_ground_is_on_every_kind() -> None:
    looks = {(i % 12, TOYS.look(i)) for i in range(20_000)}
    assert len(looks) == 12 * len(CAPTION_COLORS) * len(GROUND_WORDS)
    assert set(CAPTION_COLORS) <= set(COLORS) and set(GROUND_WORDS) == set(GROUNDS)


def test_captions_say_what_is_shown_or_leave_it_out() -> None:
    said = {"color": 0, "ground": 0}
    for i in range(1200):
        look, caption = TOYS.look(i), TOYS.caption(i)
        assert KINDS[i % 12] in caption.split()
        named = [name for name, ways in GROUND_WORDS.items() if any(caption.endswith(way) for way in ways)]
        assert named in ([], [look.ground])
        head = caption.removesuffix(next((w for w in GROUND_WORDS[look.ground] if caption.endswith(w)), ""))
        colors = [color for color in CAPTION_COLORS if color in head.split()]
        assert colors in ([], [look.color])
        said["ground"] += len(named)
        said["color"] += len(colors)
    assert 0.8 < said["ground"] / 1200 < 0.9 and 0.8 < said["color"] / 1200 < 0.9


def test_a_look_changes_paint_and_ground_and_no_shape() -> None:
    plain = build(0, [6], KINDS)
    looked = build(0, [6], KINDS, [Look("teal", "water")])
    assert plain.prims.shape == looked.prims.shape and (plain.prims[:, :15] == looked.prims[:, :15]).all()
    assert (plain.distance == looked.distance).all() and (looked.floor[0] == np.array(GROUNDS["water"][:2])).all()
    assert any(np.allclose(row, COLORS["teal"]) for row in looked.prims[:, 15:18])


def test_articles() -> None:
    assert describe("car", "orange", "on sand", "a rendering of a {}") == "a rendering of an orange car on sand"
    assert describe("car", "red") == "a photo of a red car" and describe("mug", template="the {}") == "the mug"


def test_words_cover_every_caption() -> None:
    known = set(words())
    texts = [describe(k, c, g, t) for t in (*PLAIN_TEMPLATES, *CLIP_TEMPLATES) for k, c, g in [("car", "orange", None)]]
    texts += [TOYS.caption(i) for i in range(600)]
    assert {word for text in texts for word in text.replace("-", " - ").split()} <= known


def test_captions_as_bytes_and_back() -> None:
    long = "é" * CAPTION_BYTES
    rows = caption_bytes(["a car", "", long])
    assert rows.dtype == torch.uint8 and rows.shape == (3, CAPTION_BYTES)
    assert caption_texts(rows) == ["a car", "", "é" * (CAPTION_BYTES // 2)]


def test_the_longest_caption_fits() -> None:
    longest = max((describe(k, c, g, t) for k in KINDS for c in CAPTION_COLORS for ways in GROUND_WORDS.values()
                   for g in ways for t in (*PLAIN_TEMPLATES, *CLIP_TEMPLATES)), key=len)  # fmt: skip
    assert len(longest) < CAPTION_BYTES


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="toybox size"):
        CaptionedToybox(4)
    with pytest.raises(InputError, match="toybox index"):
        TOYS[-1]
