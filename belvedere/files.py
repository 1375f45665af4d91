"""Files: where they are, and writing them so that a reader sees the old or the new one, never half of either."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def expanded(path: Path | str) -> Path:
    """Return a path with the home of its user in place of ``~``, or as it is where that is not known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for an unknown user)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; flush, fsync and rename it to ``path`` when the block succeeds.

    When the block raises (a full disk, an interrupt), the temporary file is removed and ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
