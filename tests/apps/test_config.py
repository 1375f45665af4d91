from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from belvedere.apps.config import call, config_names, load_config
from belvedere.errors import InputError

SMALL = """
task: dimr
model: {variant: toybox}
data: {kind: toybox}
optimizer: {lr: 1e-3, betas: [0.9, 0.95]}
steps: 10
batch: 4
precision: no
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_yaml_becomes_dataclasses(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL), ["steps=20", "optimizer.clip=1", "model.norm=LN", "ema.warmup=false"])
    assert config.optimizer.lr == 1e-3 and config.optimizer.betas == (0.9, 0.95)
    assert config.steps == 20 and config.precision == "no" and not config.ema.warmup
    assert config.optimizer.clip == 1.0 and config.model == {"variant": "toybox", "norm": "LN"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bath=4"], "unknown config key 'bath': did you mean 'batch'"),
        (["optimizer.beta=4"], "unknown config key 'optimizer.beta': did you mean 'betas'"),
        (["qqq=4"], "unknown config key 'qqq': known are task"),
        (["steps=many"], "config steps: 'many' is not of type int"),
        (["steps=true"], "config steps: True is not of type int"),
        (["steps=0"], "config steps: 0 must be at least 1"),
        (["optimizer.lr=.nan"], "config optimizer.lr: nan is not a number"),
        (["optimizer.lr=-1"], "config optimizer.lr: -1.0 must be at least 0"),
        (["optimizer.lr=.inf"], "config optimizer.lr: inf must be at least 0 and finite"),
        (["optimizer.weight_decay=-1"], "config optimizer.weight_decay: -1.0 must be at least 0"),
        (["optimizer.warmup_steps=-5"], "config optimizer.warmup_steps: -5 must be at least 0"),
        (["optimizer.eps=0"], "config optimizer.eps: 0.0 must be above 0"),
        (["optimizer.betas=[0.9, 1]"], r"config optimizer.betas: \[0.9, 1.0\] must be at least 0 and below 1"),
        (["optimizer.betas=[-0.1, 0.9]"], r"config optimizer.betas: \[-0.1, 0.9\] must be at least 0 and below 1"),
        (["optimizer.clip=0"], "config optimizer.clip: 0.0 must be above 0, or null for no clipping"),
        (["optimizer.clip=-1"], "config optimizer.clip: -1.0 must be above 0, or null"),
        (["optimizer.max_bad_steps=0"], "config optimizer.max_bad_steps: 0 must be at least 1"),
        (["export.default_steps=0"], "config export.default_steps: 0 must be at least 1 and at most 1000"),
        (["export.default_guidance=-3"], "config export.default_guidance: -3.0 must be at least 0 and at most 100"),
        (["export.default_guidance=101"], "config export.default_guidance: 101.0 must be at least 0 and at most 100"),
        (["export.default_shift=0"], "config export.default_shift: 0.0 must be above 0 and finite"),
        (["ema.decay=1.1"], "config ema.decay: 1.1 must be at least 0 and at most 1"),
        (["check.steps=0"], "config check.steps: 0 must be at least 1"),
        (["check.batch=0"], "config check.batch: 0 must be at least 1"),
        (["workers=-1"], "config workers: -1 must be at least 0"),
        (["optimizer=3"], "config optimizer: 3 is not of type OptimizerConfig"),
        (["optimizer.betas=[1]"], r"config optimizer.betas: \[1\] is not of type tuple"),
        (["optimizer.decay=slow"], "'slow' is not one of none, linear, cosine"),
        (["optimizer.decay=linear"], "optimizer.decay_steps"),
        (["precision=fp16"], "'fp16' is not one of auto, bf16, no"),
        (["steps"], "write key.path=value"),
        (["steps.x=1"], "'steps' has no keys below it"),
        (["steps=[1"], "not YAML"),
    ],
)
def test_bad_overrides_name_the_mend(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, SMALL), overrides)


def sized(size: int | tuple[int, int], names: Sequence[str] = (), share: float = 1.0, seed: int | None = None) -> Any:
    return size, names, share, seed


def test_a_section_is_converted_to_what_a_function_takes() -> None:
    assert call(sized, {"size": [3, 4], "names": ["a"], "share": "5e-1"}, "data") == ((3, 4), ["a"], 0.5, None)
    assert call(sized, {"size": 3, "names": "a", "share": 1, "seed": None}, "data") == (3, "a", 1.0, None)
    assert call(lambda anything: anything, {"anything": [[None]]}, "data") == [[None]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "x"}, r"config data.size: 'x' is not of type int \| tuple\[int, int\]"),
        ({"size": [1, 2, 3]}, r"data.size: \[1, 2, 3\] is not"),
        ({"size": True}, "data.size: True is not"),
        ({"size": 1, "names": [["x"]]}, r"config data.names: \['x'\] is not of type str"),
        ({"size": 1, "names": 7}, "config data.names: 7 is not of type Sequence"),
        ({"size": 1, "seed": 0.5}, "config data.seed: 0.5 is not of type int"),
        ({"size": 1, "share": None}, "config data.share: None is not of type float"),
    ],
)
def test_a_section_of_other_types_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(sized, values, "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: dimr", "config needs the key 'model'"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        (SMALL.replace("lr: 1e-3, ", ""), "config needs the key 'optimizer.lr'"),
    ],
)
def test_bad_files_are_input_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_config_lists_the_packaged_ones() -> None:
    with pytest.raises(InputError, match="dimr-toybox"):
        load_config("no-such-config")


@pytest.mark.parametrize("name", config_names())
def test_packaged_configs_parse(name: str) -> None:
    assert load_config(name).steps > 0
