"""Text-to-image models in Stable Diffusion's layout: a folder a component, official ones and ours, as plain pipelines.

Classes come from a fixed table, tensors from safetensors whose shapes are compared with the configs' first. A safety
checker that a folder may have is left out, and so is an image encoder: neither takes part in text-to-image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints.components import check_shapes, known_class, read_json
from belvedere.checkpoints.tensors import header, one_line
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
    with _quiet():
        return _load(folder, index, dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from showing bars and advice on stderr, where an error has to be one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
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
        _check_sizes(read_json(folder / "config.json"), folder / "config.json")
        check = _check_text_model if cls.__name__ in _TEXT_MODELS else _check_network
        check(cls, folder)
        options = {"dtype" if cls.__name__ in _TEXT_MODELS else "torch_dtype": dtype}
        network = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
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


def _check_network(cls: Any, folder: Path) -> None:
    """Compare the tensors of a diffusers network's files with its config, without memory for either."""
    import torch

    with torch.device("meta"):
        network = cls.from_config(cls.load_config(folder, local_files_only=True))
    wanted = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    if cls.__name__ == "AutoencoderKL":  # whose attention had other names until 2023: diffusers renames them
        found = header(_weights(folder))
        if any(".attentions.0.query." in key for key in found):
            return
    check_shapes([_weights(folder)], wanted, folder)


def _check_text_model(cls: Any, folder: Path) -> None:
    """Compare the tensors of a CLIP text model with its config, by names without the ``text_model`` some have."""
    import torch

    with torch.device("meta"):
        model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    wanted = {_bare(key): tuple(x.shape) for key, x in model.state_dict().items()}
    found = {_bare(key): shape for key, shape in header(_weights(folder)).items() if "position_ids" not in key}
    if wrong := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
        raise InputError(
            f"weights in {folder} do not fit its config.json: missing, unexpected or of another shape "
            f"{', '.join(wrong[:3])}; get the model again"
        )


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def _weights(folder: Path) -> Path:
    """Return the safetensors of a component: not those of a variant, such as fp16, beside it."""
    names = ("diffusion_pytorch_model.safetensors", "model.safetensors")
    if found := [folder / name for name in names if (folder / name).is_file()]:
        return found[0]
    raise InputError(f"{folder}: no {' or '.join(names)}; get the model with safetensors weights")
