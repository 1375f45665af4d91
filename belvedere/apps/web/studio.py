"""What the rooms share: the shelf, the thread that works, loaded models, limits."""

import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from belvedere.apps.web.limits import Limits
from belvedere.apps.web.running import Runner
from belvedere.apps.web.shelf import Shelf
from belvedere.checkpoints import store
from belvedere.errors import InputError

T = TypeVar("T")
WORK: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": 1}
"""What everything that computes is given: one at a time."""
BUSY: dict[str, Any] = {**WORK, "show_progress": "hidden"}
"""What events that compute are given."""
RAW: dict[str, Any] = {**BUSY, "preprocess": False}
"""What events are given that judge their values themselves: the page's lists and ranges are those of one model, and
Gradio would hold a program that asks for another one to them."""
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
"""What events are given that need no turn, and refuse nothing."""
ASIDE: dict[str, Any] = {"concurrency_id": "aside", "concurrency_limit": None, "show_progress": "hidden"}
"""What events are given that need no turn and may refuse: the page shows no error of an event that is not queued."""
FILES = "studio/files"
"""Where results are downloaded: FILES/ID/NAME."""


class Studio:
    """One server's state.

    ``folder``: where results and runs are kept; ``device``: auto, cpu, cuda or cuda:N; ``models``: folders of the
    models that are offered beside the embedded ones, by name.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "auto",
        limits: Limits | None = None,
        models: Mapping[str, Path] | None = None,
    ):
        self.folder, self.device, self.limits = folder, device, limits or Limits()
        self.models = {name: str(path) for name, path in (models or {}).items()}
        self.shelf = Shelf(folder / "results", self.limits.results, self.limits.result_bytes)
        self.runner = Runner(self.limits.seconds)
        self.at_end: list[Callable[[], object]] = []
        """What is called when the server ends."""
        self._lock, self._loaded = threading.RLock(), dict[str, tuple[Hashable, Any]]()

    def loaded(self, kind: str, key: Hashable, load: Callable[[], T]) -> T:
        """Return what ``load`` returned for ``key`` before, or now: one of each ``kind`` is kept.

        Example: ``studio.loaded("codec", request.model, lambda: open_codec(request.model, studio.device))``.
        """
        with self._lock:
            held = self._loaded.get(kind)
            if held is None or held[0] != key:
                self._loaded.pop(kind, None)  # before the next one is loaded, so that two are never held
                held = self._loaded[kind] = (key, load())
            return held[1]

    @property
    def names(self) -> list[str]:
        """The models at hand: the embedded ones, then others."""
        return [*store.embedded(), *self.models]

    def offered(self, *classes: str) -> list[str]:
        """Return the names of the models at hand that are of one of these classes (of ``model_index.json``)."""
        return [
            name
            for name in self.names
            if store.read_json(self.folder_of(name) / "model_index.json")["_class_name"] in classes
        ]

    def model(self, name: str) -> str:
        """Return what requests call an offered model; ``InputError`` for any other, a path or hub id among them."""
        if name not in self.models and name not in store.embedded():
            raise InputError(f"this studio offers no model {str(name)[:80]!r}: choose one of the list")
        return self.models.get(name, name)

    def folder_of(self, name: str) -> Path:
        """Return the folder of an offered model."""
        return store.resolve(self.model(name), download=False)

    def digest(self, name: str) -> str:
        """Return the digest in the card of an offered model, "" where there is none."""
        return str(store.card(self.folder_of(name)).get("digest", ""))

    def url(self, id: str, name: str) -> str:
        """Return the address, relative to the page, of a result's file."""
        return f"{FILES}/{quote(id)}/{quote(name)}"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder that is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="belvedere-") as folder:
            yield Path(folder)

    def close(self, seconds: float) -> bool:
        """Stop the work under way, call what is ``at_end``, and return whether the work ended within ``seconds``."""
        ended = self.runner.close(seconds)
        for end in self.at_end:
            end()
        return ended
