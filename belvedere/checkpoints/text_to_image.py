"""Text-to-image models in Stable Diffusion's layout: a folder a component, official ones and ours, as plain pipelines.

A safety checker that a folder may have is left out, and so is an image encoder: neither takes part in text-to-image.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints.components import known_class
from belvedere.checkpoints.published import CLASSES, files_of, load_component, quiet
from belvedere.checkpoints.tensors import one_line
from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

TEXT_TO_IMAGE = {"StableDiffusionPipeline": "diffusers", "StableDiffusionXLPipeline": "diffusers"}
"""What ``model_index.json`` calls such models, and where the class is."""
COMPONENTS = tuple(name for name in CLASSES if name != "network")
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def load_text_to_image(folder: Path, index: dict[str, Any], dtype: "torch.dtype") -> Any:
    """Return the diffusers pipeline in a folder whose ``model_index.json`` holds ``index``, ready to run, on the CPU.

    Raises ``InputError`` for a component that is missing, damaged, or of a class not in the table.
    """
    with quiet():
        return _load(folder, index, dtype)


def _load(folder: Path, index: dict[str, Any], dtype: "torch.dtype") -> Any:
    cls = known_class(TEXT_TO_IMAGE, index.get("_class_name"), folder / "model_index.json")
    parts: dict[str, Any] = {name: None for name in _LEFT_OUT if name in index}
    for name in COMPONENTS:
        if name in index:
            parts[name] = load_component(folder / name, name, index[name], dtype)
            if parts[name] is None:
                raise InputError(f"{folder / 'model_index.json'}: component {name} is left out; get the model again")
    try:
        pipeline = cls(**parts | options_of(cls, index))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'model_index.json'}: {one_line(error)}; get the model again") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def files_read(index: dict[str, Any]) -> list[str]:
    """Return patterns of the files that are read of a folder whose ``model_index.json`` holds ``index``."""
    components = [f"{name}/{file}" for name in COMPONENTS if name in index for file in files_of(name)]
    return ["model_index.json", *components]


def options_of(cls: Any, index: dict[str, Any]) -> dict[str, Any]:
    """Return what a pipeline is made from beside its components; ``index``: its model_index.json."""
    if cls.__name__ == "StableDiffusionPipeline":
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    zeros = index.get("force_zeros_for_empty_prompt") is not False
    return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
