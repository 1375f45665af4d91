"""Every config, from random valid values, through JSON and back; a key that is unknown is one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from safetensors.torch import save_file

from belvedere.apps.config import CheckConfig, EmaConfig, ExportConfig, OptimizerConfig, TrainConfig, parse
from belvedere.apps.finetune import FinetuneConfig
from belvedere.apps.requests import METADATA, PATHS, SHOWN, CompressRequest, GenerateRequest, ViewRequest
from belvedere.checkpoints.components import build
from belvedere.checkpoints.concepts import KEY, load_concept, save_concept
from belvedere.checkpoints.tensors import metadata, read_state_dict
from belvedere.compression.segpic import SegPIC
from belvedere.errors import InputError
from belvedere.generation import fitv2_config, neti
from belvedere.generation.concept import Base, Concept
from belvedere.generation.dimr import DiMR
from belvedere.generation.dimr_config import NORMS, POSITIONS
from belvedere.generation.extrapolation import EXTRAPOLATIONS
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.neti import NeTIMapper
from belvedere.synthesis import nvist_config
from belvedere.synthesis.mae import MAE
from belvedere.synthesis.nvist import NViST

Values = dict[str, Any]
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
positive = st.floats(1e-3, 1e3)
ratio = st.floats(0.5, 8)
keys = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C", "Z"]), min_size=1)


def names(choices: dict[str, tuple[str, ...]]) -> dict[str, SearchStrategy[str]]:
    return {field: st.sampled_from(values) for field, values in choices.items()}


@st.composite
def dimr(draw: DrawFn) -> Values:
    """Stages that see one image, each twice as fine as the one before."""
    count, side, finest = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    stages = []
    for i in range(count):
        heads = draw(st.integers(1, 3))
        sizes = {"height": side * 2**i, "width": side * 2**i, "patch": finest * 2 ** (count - 1 - i), "heads": heads}
        kind = draw(st.sampled_from(["transformer", "convnext"]))
        small = {field: draw(st.integers(1, 3)) for field in ("hidden", "blocks", "head_patch", "pool")}
        stages.append(sizes | small | {"kind": kind, "dim": 4 * heads * draw(st.integers(1, 3)), "pool": 1})
    rest = {
        "channels": st.integers(1, 4),
        "num_classes": st.none() | st.integers(1, 9),
        "norm": st.sampled_from(NORMS),
        "position": st.sampled_from(POSITIONS),
        "detach_lowres": st.booleans(),
        "class_std": positive,
    }
    return {
        **draw(st.fixed_dictionaries({}, optional=rest)),
        "channels": draw(rest["channels"]),
        "stage_configs": stages,
    }


@st.composite
def fitv2(draw: DrawFn) -> Values:
    heads = draw(st.integers(1, 3))
    values = {"heads": heads, "dim": 4 * heads * draw(st.integers(1, 3)), "num_classes": draw(st.integers(2, 9))}
    values |= {"depth": draw(st.integers(1, 3)), "adaln_rank": draw(st.integers(1, 5))}
    rest = {
        **names(fitv2_config.CHOICES),
        "channels": st.integers(1, 4),
        "patch": st.integers(1, 4),
        "mlp_ratio": ratio,
        "rotate_v": st.booleans(),
        "rope_theta": st.floats(2, 1e6),
        "trained_side": st.integers(2, 32),
        "extrapolation": st.sampled_from(sorted(EXTRAPOLATIONS)),
        "time_shift": positive,
        "learn_sigma": st.booleans(),
        "channels_first": st.booleans(),
        "class_std": positive,
    }
    return {**values, **draw(st.fixed_dictionaries({}, optional=rest))}


@st.composite
def nvist(draw: DrawFn) -> Values:
    encoder, decoder, patch = (draw(st.integers(1, 3)) for _ in range(3))
    near = draw(st.floats(0, 10))
    values = {"patch": patch, "image": [patch * draw(st.integers(1, 3)) for _ in range(2)], "near": near}
    values |= {"far": near + draw(positive), "encoder_heads": encoder, "decoder_heads": decoder, "volume_patch": patch}
    values |= {"dim": 4 * encoder * decoder, "resolution": patch * draw(st.integers(1, 3))}
    values |= {f"{part}_depth": draw(st.integers(1, 2)) for part in ("encoder", "decoder")}
    rest = {
        **names(nvist_config.CHOICES),
        **dict.fromkeys(nvist_config.RATIOS, ratio),
        "density": st.integers(1, 4),
        "colour": st.integers(1, 4),
        "hidden": st.integers(1, 8),
        "direction_frequencies": st.integers(1, 4),
        "camera_frequencies": st.integers(1, 4),
        "focal": st.booleans(),
        "half_side": positive,
        "samples": st.integers(1, 64),
    }
    return {**values, **draw(st.fixed_dictionaries({}, optional=rest))}


@st.composite
def mae(draw: DrawFn) -> Values:
    encoder, decoder = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    values = {"patch": draw(st.integers(1, 4)), "dim": 4 * encoder, "encoder_heads": encoder, "encoder_depth": 1}
    values |= {"decoder_dim": 4 * decoder, "decoder_heads": decoder, "decoder_depth": 1}
    rest = {"encoder_mlp_ratio": ratio, "input_norm": st.sampled_from(nvist_config.CHOICES["input_norm"])}
    return {**values, **draw(st.fixed_dictionaries({}, optional=rest))}


@st.composite
def segpic(draw: DrawFn) -> Values:
    heads, slices = draw(st.sampled_from([2, 4])), draw(st.integers(1, 3))
    small = st.integers(1, 6)
    values = {"heads": heads, "slices": slices, "channels": heads * draw(small), "latent": heads * slices}
    values |= {"windows": [draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([2, 4]))]}
    rest = {
        "head": small,
        "hyper": st.lists(small, min_size=4, max_size=4),
        "prototype": st.lists(small, min_size=2, max_size=2),
        "context": st.lists(small, min_size=4, max_size=4),
        "support": st.integers(0, 3),
        "grid": small,
        "rates": st.integers(0, 8),
    }
    return {**values, **draw(st.fixed_dictionaries(rest))}


@st.composite
def mapper(draw: DrawFn) -> Values:
    widths = draw(st.lists(st.integers(1, 16), min_size=1, max_size=2))
    rest = {
        **names(neti.CHOICES),
        "layers": st.integers(1, 8),
        "anchors": st.integers(1, 4),
        "hidden": st.integers(1, 8),
        "sigma_time": positive,
        "sigma_layer": positive,
        "bypass": st.booleans(),
        "target_norms": st.none() | st.lists(positive, min_size=len(widths), max_size=len(widths)),
        "nested_dropout": st.booleans(),
        "dropout_probability": st.floats(0, 1),
    }
    return {"widths": widths, "frequencies": draw(st.integers(1, 8)), **draw(st.fixed_dictionaries(rest))}


NETWORKS: dict[str, tuple[Any, SearchStrategy[Values]]] = {
    "dimr": (DiMR, dimr()),
    "fitv2": (FiTv2, fitv2()),
    "nvist": (NViST, nvist()),
    "mae": (MAE, mae()),
    "segpic": (SegPIC, segpic()),
    "neti": (NeTIMapper, mapper()),
}
PATH = Path("config.json")


def plain(values: Any) -> Any:
    """What JSON makes of values: lists of tuples."""
    return json.loads(json.dumps(values))


def fields(network: Any) -> Values:
    return {key: value for key, value in json.loads(network.to_json_string()).items() if not key.startswith("_")}


@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
@settings(quick, max_examples=6)
def test_networks(name: str, data: st.DataObject) -> None:
    kind, strategy = NETWORKS[name]
    values = data.draw(strategy)
    with torch.device("meta"):
        network = build(kind, values, PATH)
        written = fields(network)
        again = build(kind, written, PATH)
    assert {key: written[key] for key in values} == plain(values)
    assert fields(again) == written
    assert {k: x.shape for k, x in again.state_dict().items()} == {k: x.shape for k, x in network.state_dict().items()}
    unknown = data.draw(keys.filter(lambda key: key not in written))
    with pytest.raises(InputError, match=f"config.json: unknown key '{unknown}'") as error:
        build(kind, written | {unknown: 1}, PATH)
    assert "\n" not in str(error.value)


@given(values=mapper(), lowest=st.integers(1, 8), unknown=keys)
@quick
def test_concepts(tmp_path: Path, values: Values, lowest: int, unknown: str) -> None:
    path = tmp_path / "concept.safetensors"
    base = Base("a model", tuple("0" * 64 for _ in values["widths"]))
    concept = Concept("<x>", "cat", NeTIMapper(**values), base, min(lowest, values["hidden"]))
    save_concept(concept, path)
    found = load_concept(path)
    assert (found.token, found.super_category, found.base, found.lowest) == ("<x>", "cat", base, concept.lowest)
    assert fields(found.mapper) == fields(concept.mapper)
    before = path.read_bytes()
    save_concept(found, path)
    assert path.read_bytes() == before
    facts = json.loads(metadata(path)[KEY])
    if unknown not in values:
        facts["mapper"][unknown] = 1
        save_file(read_state_dict(path), path, {KEY: json.dumps(facts)})
        with pytest.raises(InputError, match=f"unknown key '{unknown}'") as error:
            load_concept(path)
        assert "\n" not in str(error.value)


sections = {
    "optimizer": st.builds(
        OptimizerConfig,
        lr=positive,
        betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
        clip=st.none() | positive,
        warmup_steps=st.integers(0, 100),
    ),
    "ema": st.builds(EmaConfig, decay=st.floats(0, 1), warmup=st.booleans()),
    "check": st.builds(CheckConfig, steps=st.integers(1, 99), factor=positive),
    "export": st.builds(
        ExportConfig, dtype=st.sampled_from(["bfloat16", "float16", "float32"]), default_shift=positive
    ),
    "finetune": st.none() | st.builds(FinetuneConfig, weights=words, train=st.lists(words).map(tuple)),
}
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
free = st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=4)
runs = st.builds(
    TrainConfig,
    task=words,
    model=free,
    data=free,
    loss=free,
    steps=st.integers(1, 10**6),
    batch=st.integers(1, 10**4),
    seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["auto", "bf16", "no"]),
    tracker=st.sampled_from(["auto", "tensorboard", "wandb", "none"]),
    workers=st.integers(0, 9),
    vae=st.none() | words,
    checkpointing=st.booleans(),
    **sections,
)


@given(run=runs, unknown=keys)
@quick
def test_training_runs(run: TrainConfig, unknown: str) -> None:
    written = plain(dataclasses.asdict(run))
    assert parse(TrainConfig, written) == run
    for where, part in (("", written), *((f"{name}.", written[name]) for name in sections if written[name])):
        if unknown not in part:
            with pytest.raises(InputError, match=f"unknown config key '{where}{unknown}'") as error:
                parse(TrainConfig, plain(written) | ({unknown: 1} if not where else {where[:-1]: part | {unknown: 1}}))
            assert "\n" not in str(error.value)


compressions = st.builds(
    CompressRequest,
    model=words,
    quality=st.none() | st.floats(1, 64),
    metadata=st.sampled_from(METADATA),
    background=st.none() | words,
    jobs=st.integers(1, 64),
)
views = st.builds(
    ViewRequest,
    model=words,
    path=st.sampled_from(PATHS) | words,
    frames=st.none() | st.integers(1, 10_000),
    arc=st.floats(1, 360),
    elevation=st.floats(-89, 89),
    what=st.sampled_from(SHOWN),
    size=st.none() | st.tuples(st.integers(16, 2048), st.integers(16, 2048)),
    fov=st.none() | st.floats(1, 170),
    pitch=st.none() | st.floats(-89, 89),
)


@given(request=compressions | views)
@quick
def test_requests_are_plain_values(request: CompressRequest | ViewRequest) -> None:
    """Nothing reads these from a file; what is written of them says all."""
    written = plain(dataclasses.asdict(request))
    if written.get("size"):
        written["size"] = tuple(written["size"])
    assert type(request)(**written) == request


@given(unknown=keys)
@quick
def test_a_request_has_no_other_fields(unknown: str) -> None:
    if unknown not in {field.name for field in dataclasses.fields(GenerateRequest)}:
        with pytest.raises(InputError, match=f"request has no field '{unknown}'") as error:
            GenerateRequest.from_dict({"count": 1, unknown: 1})
        assert "\n" not in str(error.value)
