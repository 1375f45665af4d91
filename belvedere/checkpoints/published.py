"""Parts of models as diffusers and transformers publish them: denoisers, autoencoders, text models, schedulers.

Their libraries build them from configs that were checked here, and open no file of a model folder: weights are filled
in by ``components.fill``.
"""

import errno
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import int8
from belvedere.checkpoints.components import (
    MAX_NUMBER,
    NETWORKS,
    check_blocks,
    check_fit,
    check_keys,
    check_numbers,
    fields,
    fill,
    known_class,
    load_network,
    read_json,
    walk,
)
from belvedere.checkpoints.tensors import check_finite, header, one_line, read_each
from belvedere.checkpoints.tokenizer import FILES, load_tokenizer
from belvedere.errors import InputError, out_of_memory

if TYPE_CHECKING:
    import torch

AUTOENCODERS = {"AutoencoderKL": "diffusers"}
_TOKENIZERS = {"CLIPTokenizer": "transformers", "CLIPTokenizerFast": "transformers"}
_TEXT_MODELS = {"CLIPTextModel": "transformers", "CLIPTextModelWithProjection": "transformers"}
_SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
CLASSES: dict[str, dict[str, str]] = {
    "network": NETWORKS,
    "scheduler": dict.fromkeys(_SCHEDULERS, "diffusers"),
    "unet": {"UNet2DConditionModel": "diffusers"},
    "vae": AUTOENCODERS,
    "text_encoder": _TEXT_MODELS,
    "text_encoder_2": _TEXT_MODELS,
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
}
"""Of each component of a pipeline the classes that it may be of, and where they are."""

_TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""What a text model is built from."""
_TEXT_REMARKS = (
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures", "dropout", "dtype", "model_type",
    "torch_dtype", "transformers_version",
)  # fmt: skip
"""What else its config says, and nothing follows from here."""
_AVERAGE_REMARKS = (
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
)  # fmt: skip
"""What diffusers' ``EMAModel`` says in a config of how the average of weights was taken."""

_MAX_LAYERS, _MAX_LIST = 256, 64
"""Of a number in a config that says how many layers there are, and of a list's length."""
_BLOCKS, _LAYERS = 4, 2
"""Of a denoiser whose config does not say."""
_TENSORS = 4
"""The fewest of a block."""
_RAN_OUT = (errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
_VERSION = "_diffusers_version"
_SCHEDULER = "scheduler_config.json"
_WEIGHTS = ("diffusion_pytorch_model", "model")
"""What files of weights are called, without their endings."""
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What autoencoders called the maps of an attention until 2023."""


def load_component(folder: Path, name: str, entry: object, dtype: "torch.dtype") -> Any:
    """Load one component of a pipeline; ``entry`` is the (library, class) pair of model_index.json.

    Returns None where ``entry`` leaves it out. Raises ``InputError`` for a component that is missing, damaged, or of a
    class not in the table.
    """
    import torch

    cls = component_class(name, entry, folder.parent / "model_index.json")
    if cls is None:
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; the model is incomplete, get it again")
    if name == "network":
        return load_network(folder, cls, dtype)
    with reading(folder):
        if name == "scheduler":
            with torch.device("cpu"):
                return cls.from_config(scheduler_config(folder))
        if name.startswith("tokenizer"):
            return load_tokenizer(cls, folder)
        if name.startswith("text_encoder"):
            return load_text_model(cls, folder, dtype)
        return load_diffusers(cls, folder, dtype)


def component_class(name: str, entry: object, index: Path) -> Any:
    """Return the class of a component by its ``entry`` in a model_index.json; None for one that is left out."""
    if not isinstance(entry, list) or len(entry) != 2:
        raise InputError(f"{index}: component {name} must be [library, class]; get the model again")
    if entry[1] is None:
        return None
    table = CLASSES.get(name, {})
    if not isinstance(entry[1], str) or entry[1] not in table:
        raise InputError(f"{index}: component {name} of class {entry[1]!r} is not one Belvedere loads")
    return known_class(table, entry[1], index)


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


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises, of what it was given from ``folder``, into ``InputError``.

    What is the machine's fault passes: memory, room or open files that ran out, a file elsewhere.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # readers of configs raise anything
        if out_of_memory(error) or (isinstance(error, OSError) and _of_the_machine(error, folder)):
            raise
        raise InputError(f"{folder}: cannot be loaded ({one_line(error)}); get the model again") from error


def _of_the_machine(error: OSError, folder: Path) -> bool:
    """Return whether an operating system's error, not a library's, has another reason than a file in ``folder``."""
    elsewhere = not str(error.filename).startswith(str(folder))
    return error.errno in _RAN_OUT or (error.errno is not None and elsewhere)


def load_diffusers(cls: Any, folder: Path, dtype: "torch.dtype") -> Any:
    """Return a denoiser or an autoencoder, built without memory and then filled; the former may be of int8."""
    import torch

    config = read_json(folder / "config.json")
    packed = int8.declared(config, folder / "config.json")
    if packed and cls.__name__ in AUTOENCODERS:
        raise InputError(f"{folder}: of int8, which only a denoiser may be; get the model again")
    files = weights_of(folder)
    config = diffusers_config(cls, config, folder, sum(len(header(file)) for file in files))
    with torch.device("meta"):
        network = cls.from_config(config)
    fill(network, files, folder, dtype, packed=packed, named=_attention_today)
    return network.eval().requires_grad_(False)


def diffusers_config(cls: Any, config: dict[str, Any], folder: Path, tensors: int) -> dict[str, Any]:
    """Return what a denoiser or an autoencoder is built from; ``tensors``: how many its weights are.

    Raises ``InputError`` for unknown keys, and for sizes that no such network has.
    """
    path = folder / "config.json"
    config = {key: value for key, value in public(config).items() if key not in _AVERAGE_REMARKS}
    check_sizes(config, path)
    check_keys(config.keys() - {_VERSION}, fields(cls), path)
    lists = (config.get(key) for key in ("block_out_channels", "down_block_types", "up_block_types"))
    blocks = max((len(x) for x in lists if isinstance(x, list)), default=_BLOCKS)
    layers = _most(config.get("layers_per_block", _LAYERS))
    within = (config.get(f"{order}transformer_layers_per_block") for order in ("", "reverse_"))
    check_blocks(blocks * layers * max(map(_most, within)), tensors, folder, _TENSORS)
    return config


def public(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of diffusers without what it keeps to itself, names of classes among them, but the version."""
    return {key: value for key, value in config.items() if not key.startswith("_") or key == _VERSION}


def check_sizes(config: dict[str, Any], path: Path) -> None:
    """Refuse sizes that no published network has, before it is built."""
    for key, value in walk(config):
        largest = _MAX_LAYERS if "layers" in key else MAX_NUMBER
        if isinstance(value, list) and len(value) > _MAX_LIST:
            raise InputError(f"{path}: a list of {len(value)} is longer than any Belvedere builds from ({_MAX_LIST})")
        if isinstance(value, int) and abs(value) > largest:
            raise InputError(f"{path}: {value} is larger than any size Belvedere builds ({largest})")


def _most(value: Any) -> int:
    """Return the largest integer in a value of a config, however nested, 1 at the least."""
    return max([1, *(item for _, item in walk({"": value}) if isinstance(item, int))])


def _attention_today(name: str) -> str:
    found = re.fullmatch(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", name)
    return f"{found[1]}{_OLD_ATTENTION[found[2]]}{found[3]}" if found else name


def load_text_model(cls: Any, folder: Path, dtype: "torch.dtype") -> Any:
    """Return a CLIP text model, built without memory and then filled, by names with or without ``text_model``."""
    import torch

    with torch.device("meta"):
        network = cls(cls.config_class(**text_config(folder)))
    ours = {_bare(key): key for key in network.state_dict()}

    def named(name: str) -> str | None:
        return None if "position_ids" in name else ours.get(_bare(name), name)

    fill(network, weights_of(folder), folder, dtype, named=named)
    for module in network.modules():
        if isinstance(getattr(module, "position_ids", None), torch.Tensor):  # which files no longer have
            module.position_ids = torch.arange(module.position_ids.shape[-1], device="cpu")[None]
    return network.eval().requires_grad_(False)


def text_config(folder: Path) -> dict[str, Any]:
    """Return what a text model is built from; ``InputError`` for unknown keys and sizes that none has."""
    path = folder / "config.json"
    config = read_json(path)
    if int8.declared(config, path):
        raise InputError(f"{folder}: of int8, which only a denoiser may be; get the model again")
    check_sizes(config, path)
    check_keys(config, (*_TEXT_FIELDS, *_TEXT_REMARKS), path)
    return {key: config[key] for key in _TEXT_FIELDS if key in config}


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def load_transformers(cls: Any, folder: Path, **options: Any) -> Any:
    """Return a model of a class of transformers, made with ``options``, whose tensors have had other names.

    Its library, which knows them, is given config and tensors, and no folder to look into. Raises ``InputError`` for
    weights that are damaged, not finite, or lack a tensor that the config asks for.
    """
    import torch

    config = read_json(folder / "config.json")
    check_sizes(config, folder / "config.json")
    made, files = cls.config_class(**_known(cls.config_class, config)), weights_of(folder)
    with torch.device("meta"):
        wanted = sum(x.numel() for x in cls(made, **options).state_dict().values())
    found = sum(math.prod(shape) for file in files for shape in header(file).values())
    if found < wanted:
        raise InputError(f"weights in {folder} do not fit its config.json: {found} numbers, {wanted} are asked for")
    tensors = {name: tensor for file in files for name, tensor in read_each(file)}
    check_finite(tensors, str(folder))
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # else it tells no names
    with quiet():
        network, told = cls.from_pretrained(None, config=made, state_dict=tensors, **options)
    check_fit(folder, missing=told["missing_keys"], mismatched=(name for name, *_ in told["mismatched_keys"]))
    return network.eval()


def _known(cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return of a config what its class has fields for, in the configs within it too."""
    kept = {key: config[key] for key in vars(cls()) if key in config and not key.startswith("_")}
    within = {key: part for key, part in cls.sub_configs.items() if isinstance(kept.get(key), dict)}
    return kept | {key: _known(part, kept[key]) for key, part in within.items()}


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Return what a scheduler is made from; ``InputError`` for numbers beyond those of any.

    Keys that it does not know are those of others that it may be exchanged for.
    """
    path = folder / _SCHEDULER
    config = read_json(path)
    check_numbers(config, path)
    return public(config)


def files_of(name: str) -> tuple[str, ...]:
    """Return patterns of the files that are read of a component of a text-to-image model, no variants of weights."""
    if name == "scheduler":
        return (_SCHEDULER,)
    if name.startswith("tokenizer"):
        return FILES
    endings = (".safetensors", ".safetensors.index.json", "-?????-of-?????.safetensors")
    return ("config.json", *(f"{weights}{ending}" for weights in _WEIGHTS for ending in endings))


def weights_of(folder: Path) -> list[Path]:
    """Return the safetensors of a component, one or the shards of its index: not those of a variant, such as fp16.

    Raises ``InputError`` when there are none, and for an index that names anything but shards beside it.
    """
    if found := [path for name in _WEIGHTS if (path := folder / f"{name}.safetensors").is_file()]:
        return found[:1]
    for name in _WEIGHTS:
        if (index := folder / f"{name}.safetensors.index.json").is_file():
            return _shards(index, name)
    wanted = " or ".join(f"{name}.safetensors" for name in _WEIGHTS)
    raise InputError(f"{folder}: no {wanted}; get the model with safetensors weights")


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
