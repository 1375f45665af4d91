"""Weights in int8: what rounding may cost, what comes back, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import belvedere
from belvedere.apps.models_exchange import export, import_official
from belvedere.checkpoints import int8, store
from belvedere.checkpoints.views import load_scene_model, save_scene_model
from belvedere.errors import InputError
from tests.generation.neti_models import save_tiny_base
from tests.synthesis.test_nvist import small

FILE = "network/diffusion_pytorch_model.safetensors"
NAME = "stages.0.head.weight"


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "model"
    export(str(tiny_model), folder, dtype="int8")
    return folder


@given(
    arrays.arrays(
        np.float16,
        st.lists(st.integers(1, 7), min_size=2, max_size=4),
        elements=st.floats(-60_000, 60_000, width=16),
    )
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_number_moves_by_more_than_half_a_step(numbers: np.ndarray) -> None:
    weight = torch.from_numpy(numbers)
    steps, scale = int8.quantised(weight)
    assert steps.dtype == torch.int8 and steps.shape == weight.shape and int(steps.min()) >= -127
    assert scale.shape == weight.shape[: 2 if weight.ndim == 3 else 1]
    largest = weight.float().abs().flatten(scale.ndim).amax(-1)
    half = (largest / 254).view([*scale.shape, *[1] * (weight.ndim - scale.ndim)])
    assert bool(((int8.restored(steps, scale) - weight.float()).abs() <= half * 1.001 + 1e-37).all())


def test_a_model_in_int8_is_loaded_as_its_rounded_self(tiny_model: Path, packed: Path) -> None:
    before, network = load_file(tiny_model / FILE), store.load(packed, device="cpu").network
    stored, after = load_file(packed / FILE), network.state_dict()
    assert all(torch.equal(after[name], int8.rounded(name, x).float()) for name, x in before.items())
    matrices = {name for name, x in before.items() if x.ndim > 1 and name.endswith(".weight")}
    assert {name for name, x in stored.items() if x.dtype == torch.int8} == matrices
    assert {x.dtype for name, x in stored.items() if name not in matrices} == {torch.float32, torch.float16}
    assert store.faults(packed) == [] and 1e-3 < store.card(packed)["rounding"] < 1e-2
    assert store.load(packed, "bfloat16", "cpu").network.dtype == torch.bfloat16
    assert (packed / FILE).stat().st_size < 0.45 * (tiny_model / FILE).stat().st_size  # small rows: many scales


def test_a_model_loaded_from_int8_is_saved_as_any_other(packed: Path, tmp_path: Path) -> None:
    export(str(packed), tmp_path / "whole")
    assert "quantization_config" not in json.loads((tmp_path / "whole/network/config.json").read_text())
    state = store.load(packed, device="cpu").network.state_dict()
    assert all(torch.equal(state[name], x) for name, x in load_file(tmp_path / "whole" / FILE).items())


def test_shards_of_int8(tiny_model: Path, packed: Path, tmp_path: Path) -> None:
    pipeline = store.load(tiny_model, device="cpu")
    nn.Module.to(pipeline.network, torch.float16)
    store.save(pipeline, tmp_path / "model", {}, shard=20_000, dtype="int8")
    files = sorted((tmp_path / "model/network").glob("*.safetensors"))
    index = json.loads((tmp_path / "model/network/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == {file.name for file in files}
    want = store.load(packed, device="cpu").network.state_dict()
    state = store.load(tmp_path / "model", device="cpu").network.state_dict()
    assert all(torch.equal(state[name], x) for name, x in want.items())


def test_what_a_scene_is_decoded_with_stays_float32(tmp_path: Path) -> None:
    model = small(near=1.0, far=4.0)
    save_scene_model(model, "int8", tmp_path / "model", {})
    state = load_scene_model(tmp_path / "model", "cpu").state_dict()
    for name, x in model.state_dict().items():
        want = x if name.startswith("field_decoder") else int8.rounded(name, x)
        assert torch.equal(state[name], want.float()), name
    assert not torch.equal(state["encoder.embed.weight"], model.state_dict()["encoder.embed.weight"].half().float())


def test_of_a_text_to_image_model_the_denoiser_is_int8(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "sd")
    export(str(base), tmp_path / "model", dtype="int8")
    before, after = belvedere.load(base, device="cpu"), belvedere.load(tmp_path / "model", device="cpu")
    unet = after.unet.state_dict()
    assert all(torch.equal(unet[name], int8.rounded(name, x).float()) for name, x in before.unet.state_dict().items())
    vae = after.vae.state_dict()
    assert all(torch.equal(vae[name], x.half().float()) for name, x in before.vae.state_dict().items())


def test_other_readers_refuse_it(packed: Path) -> None:
    with pytest.raises(ValueError, match="quantization"):
        belvedere.DiMR.from_pretrained(packed / "network")


def test_codecs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--dtype int8: the probabilities of a codec .* use float16"):
        export("segpic-photo", tmp_path / "out", dtype="int8")
    with pytest.raises(InputError, match="--dtype int8: the probabilities of a codec"):
        import_official(tmp_path / "x.pth", "segpic", tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _scale(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda weights: {**weights, NAME + int8.SCALE: change(weights[NAME + int8.SCALE]).contiguous()}


def _first(value: float) -> Callable[[Tensor], Tensor]:
    return lambda scale: torch.cat((torch.tensor([value]), scale[1:]))


HOSTILE: dict[str, tuple[Change, str]] = {
    "NaN": (_scale(_first(float("nan"))), "scales that are not finite or below 0"),
    "infinity": (_scale(_first(float("inf"))), "scales that are not finite or below 0"),
    "below 0": (_scale(_first(-1.0)), "scales that are not finite or below 0"),
    "overflows": (_scale(_first(3e38)), "holds NaN or infinity"),
    "too few": (_scale(lambda x: x[1:]), "has no scales of float32"),
    "an axis more": (_scale(lambda x: x[:, None]), "has no scales of float32"),
    "half precision": (_scale(lambda x: x.half()), "has no scales of float32"),
    "missing": (lambda w: {k: x for k, x in w.items() if k != NAME + int8.SCALE}, "has no scales of float32"),
    "of nothing": (lambda w: {**w, f"x{int8.SCALE}": torch.ones(1)}, r"1 unexpected \(x.int8_scale\)"),
    "of a float": (lambda w: {**w, NAME: w[NAME].half()}, r"1 unexpected \(stages.0.head.weight.int8_scale\)"),
    "of other integers": (lambda w: {**w, NAME: w[NAME].to(torch.int16)}, "1 unexpected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_scales_are_refused(packed: Path, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    folder = Path(shutil.copytree(packed, tmp_path / "model"))
    (folder / "card.json").unlink()
    save_file(change(load_file(folder / FILE)), folder / FILE)
    with pytest.raises(InputError, match=message) as error:
        store.load(folder, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (None, "has no|1 unexpected|unexpected|quantised"),
        ({"quant_method": "bitsandbytes"}, "is not that of Belvedere's int8"),
        ({"quant_method": "belvedere-int8", "version": 2}, "is not that of Belvedere's int8"),
        ("int8", "is not that of Belvedere's int8"),
    ],
)
def test_what_the_config_says_counts(packed: Path, tmp_path: Path, method: object, message: str) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "model"))
    (folder / "card.json").unlink()
    path = folder / "network/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": method}))
    with pytest.raises(InputError, match=message):
        store.load(folder, device="cpu")
