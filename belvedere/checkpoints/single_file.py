"""Stable Diffusion in one file (.safetensors or .ckpt, as CompVis and Stability AI published it), as a pipeline.

Such a file holds weights alone. Sizes, tokenizer and scheduler come from a folder in diffusers' layout that needs no
weights, a *layout*: that of the same model on the hub, say, without its large files.
"""

import tempfile
from pathlib import Path
from typing import Any

from belvedere.checkpoints.components import known_class, read_json
from belvedere.checkpoints.tensors import check_finite, entries, one_line, read_each, read_state_dict
from belvedere.checkpoints.text_to_image import TEXT_TO_IMAGE, check_layout, quiet
from belvedere.errors import InputError

PARTS = ("model.diffusion_model.", "first_stage_model.", ("cond_stage_model.", "conditioner."))
"""How the names of its denoiser, its autoencoder and its text models begin."""


def load_single_file(file: Path, layout: Path) -> Any:
    """Return the diffusers pipeline of a single-file checkpoint in float32, its form that of the folder ``layout``.

    Raises ``InputError`` for a file that is no such checkpoint, damaged or hostile, and for a layout of other sizes.
    """
    cls = known_class(TEXT_TO_IMAGE, read_json(layout / "model_index.json").get("_class_name"), layout)
    check_layout(layout)
    with tempfile.TemporaryDirectory() as temporary, quiet():
        weights = _as_safetensors(file, Path(temporary))
        _check_parts(weights, file)
        options: dict[str, Any] = {}
        if cls.__name__ == "StableDiffusionPipeline":
            options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        try:
            pipeline = cls.from_single_file(str(weights), config=str(layout), local_files_only=True, **options)
        except InputError:
            raise
        except Exception as error:  # what does not fit shows as anything
            why = "weights are missing" if "meta tensor" in str(error) else one_line(error)
            raise InputError(f"{file}: does not fit the layout {layout} ({why}); give that of its model") from error
    if any(x.is_meta for part in pipeline.components.values() for x in getattr(part, "state_dict", dict)().values()):
        raise InputError(f"{file}: does not fit the layout {layout} (weights are missing); give that of its model")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _as_safetensors(file: Path, folder: Path) -> Path:
    """Return a safetensors file of the same tensors: the file itself, or a copy of what a .ckpt holds."""
    if file.suffix == ".safetensors":
        for name, tensor in read_each(file):
            check_finite({name: tensor}, file.name)
        return file
    from safetensors.torch import save_file

    copy = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in read_state_dict(file).items()}, copy)
    return copy


def _check_parts(weights: Path, file: Path) -> None:
    names = list(entries(weights))
    for part in PARTS:
        if not any(name.startswith(part) for name in names):
            what = part if isinstance(part, str) else " or ".join(part)
            raise InputError(f"{file}: no Stable Diffusion checkpoint, for no tensor's name begins with {what}")
