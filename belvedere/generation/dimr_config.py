"""The sizes of DiMR: one stage, the published variants and ours, and what makes a config valid."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from belvedere.errors import InputError

NORMS = ("LN", "RMSN", "TDRMSN", "ADARMSN")
POSITIONS = ("APE", "Axial_RoPE")
CHOICES = {
    "norm": NORMS,
    "position": POSITIONS,
    "prediction": ("epsilon", "velocity", "sample"),
    "schedule": ("scaled_linear", "flow"),
}
"""Fields that are names, and the names they may have."""
LARGEST = {"blocks": 1000, "height": 4096, "width": 4096, "kernel": 255, "head_kernel": 255}
"""Bounds of a stage's sizes, so that no config can ask for endless work; 65536 for the others."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The sizes of one stage. ``blocks`` is rounded up to an odd number, as published (20 -> 21)."""

    kind: str
    """"transformer" or "convnext"."""
    dim: int
    """Channels."""
    hidden: int
    """Channels inside the GEGLU of a block."""
    blocks: int
    height: int
    """Rows of the position table: the largest grid this stage can take."""
    width: int
    heads: int = 1
    """Attention heads (transformer)."""
    kernel: int = 7
    """Side of the depthwise convolution (ConvNeXt)."""
    pool: int = 1
    """The input is averaged over pool x pool cells first."""
    patch: int = 1
    """Side of the patches that become one position."""
    head_kernel: int = 3
    """Side of the last convolution."""
    head_patch: int = 1
    """Side of the patch predicted at each position (not in the paper: lets a coarse stage predict fine pixels)."""

    def __post_init__(self) -> None:
        if self.kind not in ("transformer", "convnext"):
            raise InputError(f"stage kind {self.kind!r}: choose transformer or convnext")
        for field in fields(self)[1:]:
            value, top = getattr(self, field.name), LARGEST.get(field.name, 65536)
            if not isinstance(value, int) or not 1 <= value <= top:
                raise InputError(f"stage {field.name} {value!r}: must be an integer from 1 to {top}")
        if self.kind == "transformer" and self.dim % self.heads:
            raise InputError(f"stage dim {self.dim} is not a multiple of its {self.heads} heads")
        for name in ("head_kernel", *(["kernel"] if self.kind == "convnext" else [])):
            if getattr(self, name) % 2 == 0:
                raise InputError(f"stage {name} {getattr(self, name)}: must be odd")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "StageConfig":
        """Return a config from a mapping; an unknown key is an error."""
        if not isinstance(values, Mapping):
            raise InputError(f"stage config {repr(values)[:80]}: must be a mapping of keys")
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise InputError(f"unknown stage key {sorted(unknown)[0]!r}: known are {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"stage config {values}: {error}") from None

    @property
    def depth(self) -> int:
        """Blocks really made: always odd."""
        return self.blocks // 2 * 2 + 1

    @property
    def ratio(self) -> int:
        """Side of the input area that becomes one position."""
        return self.pool * self.patch


def _two_resolutions(dim: int, depth: int, heads: int, fine_depth: int, **rest: Any) -> dict[str, Any]:
    coarse = {"kind": "transformer", "dim": dim, "hidden": 2 * dim, "blocks": depth, "heads": heads}
    fine = {"kind": "convnext", "dim": dim // 2, "hidden": dim, "blocks": fine_depth, "kernel": 7}
    stages = [coarse | {"height": 16, "width": 16, "patch": 2}, fine | {"height": 32, "width": 32}]
    return {"channels": 4, "num_classes": 1001, "stage_configs": stages} | rest


def _three_resolutions() -> dict[str, Any]:
    """Derived from the paper's description of XL/3R at 512; width and depth of the third stage are inferred."""
    config = _two_resolutions(960, 39, 16, 20)
    coarse, middle = config["stage_configs"]
    fine = {
        "kind": "convnext",
        "dim": 240,
        "hidden": 480,
        "blocks": 20,
        "height": 64,
        "width": 64,
        "kernel": 7,
    }
    return config | {"stage_configs": [coarse | {"patch": 4}, middle | {"patch": 2}, fine]}


VARIANTS: dict[str, dict[str, Any]] = {
    "XL/2R-256": _two_resolutions(960, 39, 16, 20),
    "G/2R-256": _two_resolutions(1152, 57, 16, 29),
    "XL/3R-512": _three_resolutions(),
    "S/2R-256": _two_resolutions(384, 13, 6, 9),
    "toybox": {
        "channels": 3,
        "num_classes": 13,
        "stage_configs": [
            {"kind": "transformer", "dim": 256, "hidden": 640, "blocks": 7, "heads": 8}
            | {"height": 8, "width": 8, "patch": 8, "head_patch": 4},
            {"kind": "convnext", "dim": 128, "hidden": 320, "blocks": 5, "kernel": 7}
            | {"height": 16, "width": 16, "patch": 4, "head_patch": 4},
        ],
        "norm": "TDRMSN",
        "class_everywhere": True,
        "class_std": 0.3,
        "prediction": "sample",
        "schedule": "flow",
    },
}
"""Published sizes by their paper names, and ours. XL/3R-512 is inferred: its weights were never published."""


def check_config(config: Any, stages: list[StageConfig]) -> None:
    """Raise ``InputError`` unless the fields of a DiMR's config are known and fit together."""
    if config.channels < 1 or (config.num_classes is not None and config.num_classes < 1):
        raise InputError(f"{config.channels} channels, {config.num_classes} classes: a DiMR has 1 or more")
    for field, names in CHOICES.items():
        if config[field] not in names:
            raise InputError(f"{field} {config[field]!r}: choose from {', '.join(names)}")
    if config.prediction == "epsilon" and config.schedule == "flow":
        raise InputError("prediction epsilon of schedule flow tells nothing of pure noise: choose sample or velocity")
    if not stages:
        raise InputError("stage_configs is empty: a DiMR has at least one stage")
    for stage in stages:
        if config.position == "Axial_RoPE" and stage.kind == "transformer" and stage.dim // stage.heads % 4:
            raise InputError(
                f"stage dim {stage.dim} over {stage.heads} heads: Axial_RoPE needs channels of a head that divide by 4"
            )
    for low, high in itertools.pairwise(stages):
        if high.height % low.height or low.ratio * low.height != high.ratio * high.height:
            raise InputError(f"stages of {low.height} and {high.height} rows do not see the same image")
