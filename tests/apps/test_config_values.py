"""Whatever a config says of its network, data and loss, the task is made or refused with a reason."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from belvedere.apps.config import TrainConfig, parse
from belvedere.apps.tasks import make_task
from belvedere.errors import InputError
from tests.apps.training_systems import SYSTEMS, write_system

ODD: list[Any] = [None, "x", [["x"]], {"a": 1}, -1, 0, 1.5, True, []]


def keys(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((part, key) for part in ("model", "data", "loss") for key in values.get(part, {}))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_odd_values_are_no_surprise(system: str, tmp_path: Path) -> None:
    plain = yaml.safe_load(Path(write_system(system, tmp_path)).read_text())
    surprises = []
    for part, key in keys(plain):
        for value in ODD:
            changed = copy.deepcopy(plain)
            changed[part][key] = value
            try:
                make_task(parse(TrainConfig, changed))
            except InputError:
                pass
            except Exception as error:
                surprises.append(f"{part}.{key}={value!r}: {type(error).__name__} {error}")
    assert not surprises, "\n".join(surprises)
