"""Every view is rendered once, coarse first, and a sheet has a view everywhere from the first on."""

import numpy as np
from PIL import Image

from belvedere.apps.requests import SHOWN
from belvedere.apps.view import Viewer, turned
from belvedere.apps.web.turntable import Ring, Sheets, nearest, render_ring, rounds
from belvedere.apps.web.turntable_page import COLUMNS, RISES
from tests.apps.view_helpers import ball


def test_rounds_have_every_place_once_and_begin_with_the_pictures_own() -> None:
    found = [place for places in rounds() for place in places]
    assert found[0] == (RISES.index(0), 0)
    assert len(found) == len(set(found)) == COLUMNS * len(RISES)
    assert [column for _, column in rounds()[1]] == [6, 12, 18]


def test_the_nearest_view_is_found_around_the_end_of_the_ring() -> None:
    known = {(1, 0): [], (1, 12): []}
    assert nearest((1, COLUMNS - 1), known) == (1, 0)
    assert nearest((0, 11), known) == (1, 12)


def test_a_sheet_has_the_views_of_the_scene_in_their_places() -> None:
    scene, told = ball(), []

    def tell(done: int, total: int, sheets: Sheets | None) -> None:
        told.append((done, total, sheets))

    sheets = render_ring(scene, tell)
    assert tuple(sheets) == SHOWN
    assert [done for done, _, _ in told] == list(range(1, COLUMNS * len(RISES) + 1))
    assert told[0][2] is not None and told[1][2] is None
    ring = Ring(scene)
    height, width = ring.camera.size
    assert sheets["colour"].size == (width * COLUMNS, height * len(RISES))
    for row, column in ((0, 0), (1, 5), (2, 23)):
        box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
        wanted = Viewer(scene).frame(turned(ring.camera, column * 360 / COLUMNS, RISES[row]), "depth")
        assert np.array_equal(np.asarray(sheets["depth"].crop(box)), wanted)


def test_until_a_view_is_there_its_neighbour_stands_for_it() -> None:
    ring = Ring(ball())
    ring.render((1, 0))
    sheet = ring.sheets()["colour"]
    width = ring.camera.size[1]
    first, other = (np.asarray(sheet.crop((x, 0, x + width, sheet.height))) for x in (0, 7 * width))
    assert np.array_equal(first, other)
    assert isinstance(sheet, Image.Image)
