"""Too much is refused before anything is computed, in words that say what to do."""

import pytest

from belvedere.apps.web.limits import Limits
from belvedere.errors import InputError


def test_what_the_page_offers_is_allowed() -> None:
    limits = Limits()
    limits.check_request((64, 64), 100, limits.count)
    limits.check_request((512, 512), 25, 4)
    limits.check_film((256, 256), limits.frames)
    limits.check_learning(limits.photographs, limits.learning_steps)


@pytest.mark.parametrize(
    ("size", "steps", "count", "word"),
    [
        ((64, 64), 25, 25, "24 or fewer"),
        ((2048, 64), 25, 1, "1024 pixels"),
        ((64, 2048), 25, 1, "1024 pixels"),
        ((1024, 1024), 100, 4, "too much work"),
    ],
)
def test_pictures_beyond_a_limit_are_refused(size: tuple[int, int], steps: int, count: int, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Limits().check_request(size, steps, count)


def test_films_and_lessons_beyond_a_limit_are_refused() -> None:
    limits = Limits(frames=10, photographs=3, learning_steps=5)
    for refused in (
        lambda: limits.check_film((64, 64), 11),
        lambda: limits.check_film((1025, 64), 1),
        lambda: limits.check_learning(4, 1),
        lambda: limits.check_learning(1, 6),
    ):
        with pytest.raises(InputError):
            refused()
