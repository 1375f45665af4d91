"""The folder of a run: what lies where in it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run in folder ``path``."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def sheets(self) -> Path:
        """Where the sample sheets are."""
        return self.path / "sheets"

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.path / "log.jsonl"

    @property
    def model(self) -> Path:
        """What the run ends with."""
        return self.path / "model"
