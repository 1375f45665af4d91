"""Belvedere makes pictures, 3D views and small files.

The public names below are imported when they are first used, so ``import belvedere`` itself loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "BitstreamError": "belvedere.errors",
    "Camera": "belvedere.data.cameras",
    "ConceptPipeline": "belvedere.checkpoints.concepts",
    "DiMR": "belvedere.generation.dimr",
    "DiMRPipeline": "belvedere.generation.pipelines",
    "Field": "belvedere.synthesis.field",
    "FiTv2": "belvedere.generation.fitv2",
    "FiTv2Pipeline": "belvedere.generation.fitv2_pipeline",
    "InputError": "belvedere.errors",
    "NViST": "belvedere.synthesis.nvist",
    "SegPIC": "belvedere.compression.segpic",
    "Toybox": "belvedere.data.toybox",
    "ToyClassifier": "belvedere.data.toybox.classifier",
    "decode": "belvedere.compression.codec",
    "encode": "belvedere.compression.codec",
    "load": "belvedere.checkpoints.front",
    "load_codec": "belvedere.checkpoints.codecs",
    "load_concept": "belvedere.checkpoints.concepts",
    "load_official": "belvedere.checkpoints.official",
    "load_scene_model": "belvedere.checkpoints.views",
}

__all__ = [
    "BitstreamError",
    "Camera",
    "ConceptPipeline",
    "DiMR",
    "DiMRPipeline",
    "FiTv2",
    "FiTv2Pipeline",
    "Field",
    "InputError",
    "NViST",
    "SegPIC",
    "ToyClassifier",
    "Toybox",
    "decode",
    "encode",
    "load",
    "load_codec",
    "load_concept",
    "load_official",
    "load_scene_model",
]

if TYPE_CHECKING:
    from belvedere.checkpoints.codecs import load_codec
    from belvedere.checkpoints.concepts import ConceptPipeline, load_concept
    from belvedere.checkpoints.front import load
    from belvedere.checkpoints.official import load_official
    from belvedere.checkpoints.views import load_scene_model
    from belvedere.compression.codec import decode, encode
    from belvedere.compression.segpic import SegPIC
    from belvedere.data.cameras import Camera
    from belvedere.data.toybox import Toybox
    from belvedere.data.toybox.classifier import ToyClassifier
    from belvedere.errors import BitstreamError, InputError
    from belvedere.generation.dimr import DiMR
    from belvedere.generation.fitv2 import FiTv2
    from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
    from belvedere.generation.pipelines import DiMRPipeline
    from belvedere.synthesis.field import Field
    from belvedere.synthesis.nvist import NViST


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'belvedere' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
