"""Stable Diffusion in one file (.safetensors or .ckpt, as CompVis and Stability AI published it), as a pipeline.

Such a file holds weights alone. Sizes, tokenizer and scheduler come from a folder in diffusers' layout that needs no
weights, a *layout*: that of the same model on the hub, say, without its large files. Diffusers sees a copy of what was
checked in it.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from belvedere.checkpoints import int8
from belvedere.checkpoints.components import known_class, read_json
from belvedere.checkpoints.published import (
    CLASSES,
    component_class,
    diffusers_config,
    quiet,
    scheduler_config,
    text_config,
)
from belvedere.checkpoints.tensors import check_finite, entries, one_line, read_each, read_state_dict
from belvedere.checkpoints.text_to_image import COMPONENTS, TEXT_TO_IMAGE, options_of
from belvedere.checkpoints.tokenizer import copy_tokenizer
from belvedere.errors import InputError, out_of_memory

PARTS = ("model.diffusion_model.", "first_stage_model.", ("cond_stage_model.", "conditioner."))
"""How the names of its denoiser, its autoencoder and its text models begin."""


def load_single_file(file: Path, layout: Path) -> Any:
    """Return the diffusers pipeline of a single-file checkpoint in float32, its form that of the folder ``layout``.

    Raises ``InputError`` for a file that is no such checkpoint, damaged or hostile, and for a layout of other sizes.
    """
    index = read_json(layout / "model_index.json")
    cls = known_class(TEXT_TO_IMAGE, index.get("_class_name"), layout)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary, quiet():
        weights = _as_safetensors(file, Path(temporary))
        _check_parts(weights, file)
        copy = Path(temporary) / "layout"
        _copy_layout(layout, index, copy, len(entries(weights)))
        try:
            pipeline = cls.from_single_file(
                str(weights), config=str(copy), local_files_only=True, **options_of(cls, index)
            )
        except InputError:
            raise
        except Exception as error:  # what does not fit shows as anything
            if out_of_memory(error):
                raise
            why = "weights are missing" if "meta tensor" in str(error) else one_line(error)
            raise InputError(f"{file}: does not fit the layout {layout} ({why}); give that of its model") from error
    if any(x.is_meta for part in pipeline.components.values() for x in getattr(part, "state_dict", dict)().values()):
        raise InputError(f"{file}: does not fit the layout {layout} (weights are missing); give that of its model")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _copy_layout(layout: Path, index: dict[str, Any], copy: Path, tensors: int) -> None:
    """Write to the folder ``copy`` what a pipeline is built from, and nothing else that is in ``layout``.

    ``tensors``: how many its weights are. Raises ``InputError`` for classes, keys and sizes that are not known.
    """
    copy.mkdir()
    kept: dict[str, Any] = {"_class_name": index["_class_name"]}
    for name in COMPONENTS:
        folder, fresh = layout / name, copy / name
        cls = component_class(name, index.get(name, [None, None]), layout / "model_index.json")
        if cls is None:
            continue
        fresh.mkdir()
        kept[name] = [CLASSES[name][cls.__name__], cls.__name__]
        if name.startswith("tokenizer"):
            copy_tokenizer(folder, fresh)
        elif name == "scheduler":
            _write(fresh / "scheduler_config.json", scheduler_config(folder))
        elif name.startswith("text_encoder"):
            _write(fresh / "config.json", text_config(folder))
        else:
            config = read_json(folder / "config.json")
            int8.declared(config, folder / "config.json")
            config = diffusers_config(cls, config, folder, tensors)
            _write(fresh / "config.json", config | {"_class_name": cls.__name__})
    _write(copy / "model_index.json", kept)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


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
