"""Text-to-image models in Stable Diffusion's layout: a folder a component, official ones and ours, as plain pipelines.

Classes come from a fixed table, tensors from safetensors whose shapes are compared with the configs' first. A safety
checker that a folder may have is left out, and so is an image encoder: neither takes part in text-to-image.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import int8
from belvedere.checkpoints.components import Shapes, check_shapes, fill, known_class, read_json
from belvedere.checkpoints.tensors import check_finite, header, one_line
from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

TEXT_TO_IMAGE = {"StableDiffusionPipeline": "diffusers", "StableDiffusionXLPipeline": "diffusers"}
"""What ``model_index.json`` calls such models, and where the class is."""
_TOKENIZERS = {"CLIPTokenizer": "transformers", "CLIPTokenizerFast": "transformers"}
_TEXT_MODELS = {"CLIPTextModel": "transformers", "CLIPTextModelWithProjection": "transformers"}
_COMPONENTS: dict[str, dict[str, str]] = {
    "unet": {"UNet2DConditionModel": "diffusers"},
    "vae": {"AutoencoderKL": "diffusers"},
    "text_encoder": _TEXT_MODELS,
    "text_encoder_2": _TEXT_MODELS,
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
}
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
_MAX_SIZE, _MAX_LAYERS, _MAX_LIST = 1 << 16, 256, 64
"""Of a number in a config that says how large something is, or how many layers there are, and of a list's length."""


def load_text_to_image(folder: Path, index: dict[str, Any], dtype: "torch.dtype") -> Any:
    """Return the diffusers pipeline in a folder whose ``model_index.json`` holds ``index``, ready to run, on the CPU.

    Raises ``InputError`` for a component that is missing, damaged, or of a class not in the table.
    """
    with quiet():
        return _load(folder, index, dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from showing bars and advice on stderr, where an error has to be one line."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(logging, logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in libraries]
    for logging in libraries:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, level, bars in before:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _load(folder: Path, index: dict[str, Any], dtype: "torch.dtype") -> Any:
    cls = known_class(TEXT_TO_IMAGE, index.get("_class_name"), folder / "model_index.json")
    parts: dict[str, Any] = {name: None for name in _LEFT_OUT if name in index}
    for name in ("scheduler", *_COMPONENTS):
        if name in index:
            parts[name] = _component(folder / name, name, index[name], dtype)
    if cls.__name__ == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        parts |= {"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt") is not False}
        parts |= {"add_watermarker": False}
    try:
        pipeline = cls(**parts)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'model_index.json'}: {one_line(error)}; get the model again") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _component(folder: Path, name: str, entry: object, dtype: "torch.dtype") -> Any:
    where = folder.parent / "model_index.json"
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        raise InputError(f"{where}: component {name} must be [library, class]; get the model again")
    if name == "scheduler":
        return _scheduler(folder, entry[1])
    cls = known_class(_COMPONENTS[name], entry[1], where)
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; the model is incomplete, get it again")
    try:
        if name in ("tokenizer", "tokenizer_2"):
            return cls.from_pretrained(folder, local_files_only=True)
        config = read_json(folder / "config.json")
        _check_sizes(config, folder / "config.json")
        network = (_unet if name == "unet" else _as_published)(cls, config, folder, dtype)
    except InputError:
        raise
    except Exception as error:  # readers of configs raise anything
        raise InputError(f"{folder}: cannot be loaded ({one_line(error)}); get the model again") from error
    return network.eval().requires_grad_(False)


def _scheduler(folder: Path, name: str) -> Any:
    import diffusers

    cls: Any = getattr(diffusers, name, None)
    if diffusers.SchedulerMixin not in getattr(cls, "__mro__", ()):
        raise InputError(f"{folder.parent}: component scheduler of class {name!r} is not one Belvedere loads")
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InputError(f"{folder}: cannot be loaded ({one_line(error)}); get the model again") from error


def check_layout(folder: Path) -> None:
    """Refuse a folder whose configs name classes that are not in the table, or sizes that no such network has."""
    where = folder / "model_index.json"
    for name, entry in read_json(where).items():
        if name in _COMPONENTS:
            known_class(_COMPONENTS[name], entry[1] if isinstance(entry, list) and len(entry) == 2 else entry, where)
            if "tokenizer" not in name:
                _check_sizes(read_json(folder / name / "config.json"), folder / name / "config.json")


def _check_sizes(value: Any, path: Path, largest: int = _MAX_SIZE) -> None:
    """Refuse sizes that no such network has, before it is built; ``largest``: of a number in ``value``."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_sizes(item, path, _MAX_LAYERS if "layers" in key else largest)
    elif isinstance(value, list):
        if len(value) > _MAX_LIST:
            raise InputError(f"{path}: a list of {len(value)} is longer than any Belvedere builds from ({_MAX_LIST})")
        for item in value:
            _check_sizes(item, path, largest)
    elif isinstance(value, int) and abs(value) > largest:
        raise InputError(f"{path}: {value} is larger than any size Belvedere builds ({largest})")


def _unet(cls: Any, config: dict[str, Any], folder: Path, dtype: "torch.dtype") -> Any:
    """Build the denoiser without memory, then read its weights, as they are or of int8."""
    import torch

    packed = int8.declared(config, folder / "config.json")
    with torch.device("meta"):
        network = cls.from_config(config)
    fill(network, _weights(folder), folder, dtype, packed=packed)
    return network


def _as_published(cls: Any, config: dict[str, Any], folder: Path, dtype: "torch.dtype") -> Any:
    """Let its library load an autoencoder or a text model, whose tensors have had other names in other years."""
    if int8.declared(config, folder / "config.json"):
        raise InputError(f"{folder}: of int8, which only a denoiser may be; get the model again")
    is_text = cls.__name__ in _TEXT_MODELS
    if is_text:
        _check_text_model(cls, folder)
    else:
        _check_autoencoder(cls, config, folder)
    options = {"dtype" if is_text else "torch_dtype": dtype}
    network = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
    check_finite(network.state_dict(), str(folder))
    return network


def _check_autoencoder(cls: Any, config: dict[str, Any], folder: Path) -> None:
    """Compare the tensors of an autoencoder's files with its config, without memory for either."""
    import torch

    with torch.device("meta"):
        network = cls.from_config(config)
    wanted = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    files = _weights(folder)
    if any(".attentions.0.query." in key for file in files for key in header(file)):
        return  # the attention's names until 2023, which diffusers renames
    check_shapes(files, wanted, folder)


def _check_text_model(cls: Any, folder: Path) -> None:
    """Compare the tensors of a CLIP text model with its config, by names without the ``text_model`` some have."""
    import torch

    with torch.device("meta"):
        model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    wanted = {_bare(key): tuple(x.shape) for key, x in model.state_dict().items()}
    check_shapes(_weights(folder), wanted, folder, _bare_shapes)


def _bare_shapes(path: Path) -> Shapes:
    found = {key: shape for key, shape in header(path).items() if "position_ids" not in key}
    bare = {_bare(key): shape for key, shape in found.items()}
    if len(bare) != len(found):
        raise InputError(f"{path}: a tensor is there with and without 'text_model.' in its name; get the model again")
    return bare


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def _weights(folder: Path) -> list[Path]:
    """Return the safetensors of a component, one or the shards of its index: not those of a variant, such as fp16.

    Raises ``InputError`` when there are none, and for an index that names anything but shards beside it.
    """
    names = ("diffusion_pytorch_model", "model")
    if found := [path for name in names if (path := folder / f"{name}.safetensors").is_file()]:
        return found[:1]
    for name in names:
        if (index := folder / f"{name}.safetensors.index.json").is_file():
            return _shards(index, name)
    raise InputError(
        f"{folder}: no {' or '.join(f'{name}.safetensors' for name in names)}; get the model with safetensors weights"
    )


def _shards(index: Path, name: str) -> list[Path]:
    places = read_json(index).get("weight_map")
    named = list(places.values()) if isinstance(places, dict) else []
    files = sorted(set(named)) if all(isinstance(file, str) for file in named) else []
    if not files:
        raise InputError(f"{index}: its weight_map must give the file of each tensor; get the model again")
    for file in files:
        if not re.fullmatch(rf"{name}-\d{{5}}-of-\d{{5}}\.safetensors", file):
            raise InputError(f"{index}: {one_line(file)[:80]!r} is no file of weights beside it; get the model again")
        if not (index.parent / file).is_file():
            raise InputError(f"{index.parent / file}: missing; the model is incomplete, get it again")
    return [index.parent / file for file in files]
