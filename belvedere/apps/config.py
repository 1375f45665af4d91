"""The config of a training run: YAML or a packaged name -> frozen dataclasses. An unknown key is an error."""

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from belvedere.apps.finetune import FinetuneConfig
from belvedere.apps.requests import MAX_GUIDANCE, MAX_STEPS
from belvedere.apps.written import check_keys, parse_yaml, read_mapping
from belvedere.errors import InputError

T = TypeVar("T")


def _require(fits: bool, key: str, value: Any, bounds: str) -> None:
    """Raise ``InputError`` for a value that does not fit its bounds."""
    if not fits:
        raise InputError(f"config {key}: {value} must be {bounds}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Who changes the weights and its learning rate: a linear warm-up, constant, then an optional decay at the end."""

    lr: float
    name: Literal["adamw", "muon"] = "adamw"
    """muon: for the weights of linear layers inside blocks, and AdamW for all others."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW, as ``eps`` is; Muon's momentum is 0.95."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    decay_steps: int = 0
    """Length of the decay to zero, which ends at the last step."""
    clip: float | None = None
    """Largest gradient norm; null: no clipping."""
    max_bad_steps: int = 10
    """Steps in a row whose loss or gradient is not finite before the run stops; each is skipped."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_steps"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"optimizer.{name}", value, "at least 0 and finite")
        _require(self.eps > 0, "optimizer.eps", self.eps, "above 0")
        betas = list(self.betas)
        _require(all(0 <= beta < 1 for beta in betas), "optimizer.betas", betas, "at least 0 and below 1")
        _require(self.clip is None or self.clip > 0, "optimizer.clip", self.clip, "above 0, or null for no clipping")
        _require(self.max_bad_steps >= 1, "optimizer.max_bad_steps", self.max_bad_steps, "at least 1")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the weights; ``warmup`` bounds the decay by (1 + step) / (10 + step)."""

    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        _require(0 <= self.decay <= 1, "ema.decay", self.decay, "at least 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """``--check``: fit ``batch`` fixed samples for ``steps`` steps; the loss must fall by ``factor``."""

    steps: int = 60
    batch: int = 8
    factor: float = 2.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "check.steps", self.steps, "at least 1")
        _require(self.batch >= 1, "check.batch", self.batch, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What the model folder made at the end holds."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    default_steps: int = 25
    default_guidance: float = 2.0
    default_shift: float = 1.0

    def __post_init__(self) -> None:
        steps, guidance, shift = self.default_steps, self.default_guidance, self.default_shift
        _require(1 <= steps <= MAX_STEPS, "export.default_steps", steps, f"at least 1 and at most {MAX_STEPS}")
        fits = 0 <= guidance <= MAX_GUIDANCE
        _require(fits, "export.default_guidance", guidance, f"at least 0 and at most {MAX_GUIDANCE:g}")
        _require(0 < shift < math.inf, "export.default_shift", shift, "above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. ``model``, ``data`` and ``loss`` are read by the task."""

    task: str
    model: dict[str, Any]
    data: dict[str, Any]
    optimizer: OptimizerConfig
    steps: int
    batch: int
    """Samples a step, over all processes."""
    seed: int = 0
    loss: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    """Parts a process splits its share of the batch into."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """auto: bf16 where the device computes it, else float32."""
    ema: EmaConfig = EmaConfig()
    checkpointing: bool = False
    """Keep no activations inside blocks and compute them again: less memory, a third more time."""
    compiled: bool = False
    """Let ``torch.compile`` fuse the network's blocks: faster steps after a slow first one."""
    deterministic: bool = False
    """Take only operations that give the same bits each time (``apps/policy.py``); one without such a form ends it."""
    shard: bool = False
    """Leave each process a part of weights, average and optimizer (FSDP2), for networks that one cannot hold."""
    vae: str | None = None
    """The autoencoder of the latents: folder, pipeline's folder or hub id; encodes pictures, decodes sheets."""
    finetune: FinetuneConfig | None = None
    """Where training begins, and what learns; null: fresh weights, everything."""
    workers: int = 1
    """Processes that make batches; 0: the training process itself."""
    log_every: int = 20
    tracker: Literal["auto", "tensorboard", "wandb", "none"] = "auto"
    """Who is told the figures besides ``log.jsonl``; auto: TensorBoard where it is installed."""
    sheet_every: int = 0
    """Steps between sample sheets; 0: none but the last."""
    evaluate_every: int = 0
    """Steps between looks at the loss of held-out samples; 0: none."""
    held_out: dict[str, Any] = field(default_factory=dict)
    """Keys that replace those of ``data``: where the held-out samples are."""
    patience: int = 0
    """Looks in a row at held-out samples that may find no lower loss before the run ends; 0: it ends at ``steps``."""
    save_every: int = 500
    keep: int = 2
    """Checkpoints kept."""
    check: CheckConfig = CheckConfig()
    export: ExportConfig = ExportConfig()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every", "keep"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.patience < 0 or (self.patience and self.evaluate_every <= 0):
            raise InputError("config patience counts looks at held-out samples: 0, or above with evaluate_every")
        if self.evaluate_every > 0 and not self.held_out:
            raise InputError("config evaluate_every needs held_out: the keys of data that differ for held-out samples")
        _require(self.workers >= 0, "workers", self.workers, "at least 0")
        if self.optimizer.decay != "none" and not 0 < self.optimizer.decay_steps <= self.steps:
            raise InputError(f"config optimizer.decay_steps: must lie in 1..{self.steps} when decay is not none")
        if self.optimizer.name == "muon" and self.shard:
            raise InputError("config optimizer.name muon needs whole matrices: choose adamw, or shard: false")


def config_names() -> list[str]:
    """Return the names of the packaged configs."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_config(name_or_path: str | Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """Return the config of a packaged name or a YAML file, with ``key.path=value`` overrides applied.

    A missing file, bad YAML, an unknown key or a value of the wrong type raises ``InputError``.
    """
    values = _read(name_or_path)
    for override in overrides:
        _override(values, override)
    return parse(TrainConfig, values)


def parse(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Return the dataclass ``kind`` made from a mapping; ``where`` is the path of keys that led here."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    check_keys(values, known, where)
    parsed = {key: _convert(value, hints[key], f"{where}{key}") for key, value in values.items()}
    required = [name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in parsed]:
        raise InputError(f"config needs the key {where + missing[0]!r}")
    return kind(**parsed)


def call(function: Callable[..., Any], values: Mapping[str, Any], where: str) -> Any:
    """Call ``function`` with the config section ``where``.

    A key that is not one of its parameters is an error, and so is a value of another type than its annotation.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    check_keys(values, parameters, f"{where}.")
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in values]:
        raise InputError(f"config needs the key {f'{where}.{missing[0]}'!r}")
    return function(
        **{name: _convert(value, parameters[name].annotation, f"{where}.{name}") for name, value in values.items()}
    )


def _folder() -> Any:
    return resources.files("belvedere") / "configs"


def _read(name_or_path: str | Path) -> dict[str, Any]:
    packaged = _folder() / f"{name_or_path}.yaml"
    source = packaged if packaged.is_file() else Path(name_or_path)
    if not source.is_file():
        raise InputError(f"no config {str(name_or_path)!r}: give a YAML file or one of {', '.join(config_names())}")
    return read_mapping(source, f"config {name_or_path}")


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"override {override!r}: write key.path=value")
    *parents, key = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {parent!r} has no keys below it")
    try:
        values[key] = parse_yaml(text)
    except ValueError:
        raise InputError(f"override {override!r}: the value is not YAML") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as the type ``hint``, or raise ``InputError``."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return parse(hint, value, f"{where}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_to_one(value, arguments, hint, where)
    if origin is Literal:
        value = {False: "no"}.get(value, value) if isinstance(value, bool) else value  # YAML reads a bare no as false
        if value in arguments:
            return value
        raise InputError(f"config {where}: {repr(value)[:80]} is not one of {', '.join(map(str, arguments))}")
    if origin is tuple and arguments[1:] == (...,) and isinstance(value, list | tuple):
        return tuple(_convert(v, arguments[0], where) for v in value)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_convert(v, a, where) for v, a in zip(value, arguments, strict=True))
    if origin in (Sequence, list) and isinstance(value, list | tuple):
        return type(value)(_convert(v, arguments[0], where) for v in value)
    return _convert_plain(value, origin or hint, where)


def _convert_to_one(value: Any, choices: tuple[Any, ...], hint: Any, where: str) -> Any:
    """Return ``value`` as the first of the types ``choices`` that it fits; ``hint`` is all of them."""
    if value is None and types.NoneType in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not types.NoneType)
    if len(choices) == 1:
        return _convert(value, choices[0], where)
    for choice in choices:
        try:
            return _convert(value, choice, where)
        except InputError:
            continue
    raise InputError(f"config {where}: {repr(value)[:80]} is not of type {hint}")


def _convert_plain(value: Any, kind: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
        else:
            if math.isnan(number):  # no comparison would find it out of its bounds
                raise InputError(f"config {where}: {value} is not a number")
            return number
    if kind in (Any, inspect.Parameter.empty):
        return value
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise InputError(f"config {where}: {repr(value)[:80]} is not of type {name}")
