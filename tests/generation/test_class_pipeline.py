"""What both pipelines of classes share: as diffusers loads them, their arguments, and the defaults of PyTorch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import belvedere
from belvedere.errors import InputError
from belvedere.generation import class_pipeline, rooms
from belvedere.generation.class_pipeline import ClassPipeline
from tests.conftest import DEFAULTS, by_default

SYSTEMS = {"tiny_model": "DiMRPipeline", "tiny_fitv2": "FiTv2Pipeline"}


@pytest.fixture(params=SYSTEMS)
def folder(request: pytest.FixtureRequest) -> Path:
    """Of a pipeline of either system; do not change it."""
    return request.getfixturevalue(request.param)


def opened(folder: Path, **parts: Any) -> ClassPipeline:
    """Return a pipeline, loaded through its own class by diffusers."""
    (name,) = (name for name in SYSTEMS.values() if f'"{name}"' in (folder / "model_index.json").read_text())
    made = getattr(belvedere, name).from_pretrained(folder, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def pixels(made: Any, labels: Any = ("car", 2), **options: Any) -> torch.Tensor:
    return made(labels, generator=torch.Generator().manual_seed(0), output_type="pt", **options).images


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of few pictures and of many have other rooms, as on a GPU."""
    monkeypatch.setattr(rooms, "full", lambda device: rooms.FULL)


def rows(made: ClassPipeline, count: int, **options: Any) -> list[int]:
    """Return the rows of every network call for so many pictures, in one step without guidance."""
    seen = list[int]()
    own = made._graphs
    made._graphs = lambda function, x, *rest, **named: seen.append(len(x)) or function(x, *rest)  # type: ignore[assignment]
    made._graphs.follow = lambda network: None  # type: ignore[method-assign]
    made([0] * count, num_inference_steps=1, guidance_scale=1.0, output_type="latent", **options)
    made._graphs = own
    return seen


def test_a_request_of_few_pictures_has_small_calls_on_a_gpu_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened(folder)
    (small,) = rows(made, 1)
    monkeypatch.setattr(rooms, "full", lambda device: rooms.FULL)
    assert rows(made, 1) == [small]
    assert rows(made, 1, room=4) == [4 * small]
    (many,) = rows(made, 33)  # more than a call of a CPU holds, less than one of a GPU
    assert small < many < 32 * small and many % small == 0
    assert rows(made, 33, room=rooms.FULL) == [32 * small]
    assert rows(made, 1000) == [32 * small] * len(made.split([made.default_size] * 1000))


def test_pictures_of_a_room_are_their_own(folder: Path, as_on_a_gpu: None) -> None:
    made = opened(folder)

    def latents(seeds: list[int], room: int) -> torch.Tensor:
        each = [torch.Generator().manual_seed(seed) for seed in seeds]
        return made(
            [seed % 3 for seed in seeds], generator=each, num_inference_steps=2, room=room, output_type="latent"
        ).images

    for room in (2, 4):
        whole = latents(list(range(20)), room)
        assert torch.equal(latents([7], room)[0], whole[7]) and torch.equal(latents([19, 0], room), whole[[19, 0]])


def test_diffusers_loads_what_belvedere_does(folder: Path) -> None:
    assert torch.equal(pixels(opened(folder)), pixels(belvedere.load(folder, device="cpu")))
    assert opened(folder, dtype=torch.bfloat16).network.dtype == torch.bfloat16


def test_a_scheduler_can_be_given_to_diffusers_and_saved(folder: Path, tmp_path: Path) -> None:
    made = opened(folder, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    made.save_pretrained(tmp_path / "saved")
    again = opened(tmp_path / "saved")
    assert isinstance(again.scheduler, diffusers.FlowMatchEulerDiscreteScheduler) and again.vae is None
    assert torch.equal(pixels(again), pixels(made)) and not torch.equal(pixels(made), pixels(opened(folder)))
    again.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pixels(again), pixels(made))


# Arguments


def test_classes_may_be_integers_of_any_library(folder: Path) -> None:
    made = opened(folder)
    want = pixels(made, [1, 2])
    for labels in (np.array([1, 2]), torch.tensor([1, 2]), (np.int64(1), "plane"), iter(["boat", 2])):
        assert torch.equal(pixels(made, labels), want)
    assert torch.equal(pixels(made, np.int64(1)), pixels(made, 1))


@pytest.mark.parametrize("labels", [[1.7], 1.7, [None], [[1]], [1, torch.tensor(0.5)]])
def test_no_other_classes(folder: Path, labels: Any) -> None:
    with pytest.raises(InputError, match=r"class .*: give its name, or its id, a whole number"):
        opened(folder)(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "PIL"}, "output_type 'PIL': choose pil, np, pt, latent"),
        ({"output_type": None}, "output_type None: choose"),
        ({"num_inference_steps": "4"}, "num_inference_steps '4': must be a whole number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5: must be a whole number"),
        ({"guidance_scale": "4"}, "guidance_scale '4': must be a finite number"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan: must be a finite number"),
        ({"guidance_power": [1]}, r"guidance_power \[1\]: must be a finite number"),
        ({"generator": 5}, "generator 5: must be a torch.Generator, or a list of one for each image"),
        ({"generator": [5]}, r"generator \[5\]: must be"),
    ],
)
def test_an_argument_that_is_none_is_named_before_any_sampling(folder: Path, options: Any, message: str) -> None:
    made = opened(folder)
    made.network.register_forward_pre_hook(lambda *_: pytest.fail("it was sampled"))
    with pytest.raises(InputError, match=message):
        made("car", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 64.0}, "height 64.0: must be a whole number"),
        ({"width": "64"}, "width '64': must be a whole number"),
        ({"guidance_channels": 1.5}, "guidance_channels 1.5: must be a whole number"),
        ({"sizes": [(16, 16)], "height": 64}, "sizes, and height or width too: give either"),
        ({"sizes": [(16.0, 16)]}, r"size \(16.0, 16\): give \(height, width\), whole numbers of pixels"),
        ({"sizes": [(16,)]}, r"size \(16,\): give \(height, width\)"),
        ({"sizes": [16]}, r"size 16: give \(height, width\)"),
        ({"sizes": []}, "0 sizes for 1 images"),
    ],
)
def test_sizes_that_are_none_are_named(tiny_fitv2: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(tiny_fitv2)("car", **options)


def test_numbers_of_numpy_are_numbers(folder: Path) -> None:
    made = opened(folder)
    numbers = {"num_inference_steps": np.int64(2), "guidance_scale": np.float32(1.5)}
    assert torch.equal(pixels(made, **numbers), pixels(made, num_inference_steps=2, guidance_scale=1.5))


# Generators and defaults of PyTorch


def test_padding_draws_where_the_given_generators_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(device=device, manual_seed=lambda _: device))
    given: Any = [SimpleNamespace(device="cuda:1")]
    assert class_pipeline.with_spares(given, 2) == [*given, "cuda:1", "cuda:1"]


@pytest.mark.slow
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("solver", ["multistep", "published", "sde-heun", "dopri5"])
def test_defaults_of_pytorch_change_no_bit(folder: Path, solver: str, default: str) -> None:
    options = {"solver": solver, "num_inference_steps": 3}
    try:
        want = pixels(belvedere.load(folder, device="cpu"), **options)
    except InputError:
        pytest.skip("not one of its solvers")
    with by_default(default):
        made = pixels(belvedere.load(folder, device="cpu"), **options)
    assert torch.equal(made, want)
