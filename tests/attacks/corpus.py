"""What an attack is: a file made by code, how the product opens it, and what has to come of it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MARK = "mark"
"""File in the corpus' folder that a gadget makes when it runs."""


class Attack(NamedTuple):
    """A hostile file, or an odd one."""

    name: str
    open: Callable[[], object]
    """Opens the file as the product does."""
    message: str
    """Regular expression of the one line of ``InputError``; empty: the file is odd but right."""
    right: Callable[[object], bool] = lambda result: True
    """Whether what came of a right file is right."""


def written(path: Path, content: bytes | str) -> Path:
    """Write a file, its folder first; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
