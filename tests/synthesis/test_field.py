"""Fields against their formulas written out, and scenes on disk: there and back, and every way to lie."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis import field as module
from belvedere.synthesis.field import FORMS, Field, FieldDecoder, encode_directions

SIZES = {"density": 2, "colour": 3, "hidden": 8, "frequencies": 2}


def make(form: str = "vector_matrix", b: int = 2, r: int = 4, seed: int = 0, **keywords: Any) -> Field:
    """Return a field of random numbers."""
    torch.manual_seed(seed)
    decoder, c = FieldDecoder(form=form, **SIZES), SIZES["density"] + SIZES["colour"]
    planes = None if form == "cp" else torch.randn(b, 3, c, r, r)
    return Field(planes, None if form == "triplane" else torch.randn(b, 3, c, r), decoder, **keywords)


def unit(*shape: int, seed: int = 1) -> Tensor:
    return F.normalize(torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


def points(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def features_at_texel(field: Field, scene: int, x: int, y: int, z: int) -> Tensor:
    """Return the features (3, c) at the centre of a texel, from what the planes and lines are said to be."""
    factors = []
    if field.planes is not None:
        p = field.planes[scene]
        factors.append(torch.stack((p[0, :, y, x], p[1, :, x, z], p[2, :, z, y])))
    if field.lines is not None:
        v = field.lines[scene]
        factors.append(torch.stack((v[0, :, z], v[1, :, y], v[2, :, x])))
    return math.prod(factors)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_density_and_colour_at_a_texel(form: str) -> None:
    field, (x, y, z), scene = make(form), (0, 3, 2), 1
    point = ((torch.tensor([x, y, z]) + 0.5) / 2 - 1) * 0.8
    direction = unit(2, 1)
    density, colour = field(point.expand(2, 1, 3), direction)
    features, decoder = features_at_texel(field, scene, x, y, z), field.decoder
    dense, painted = features[:, :2], features[:, 2:]
    if form == "triplane":
        expected = decoder.density_out(torch.cat((dense[0], dense[1], dense[2])))[0]
    else:
        expected = dense.prod(0).sum() if form == "cp" else dense.sum()
    torch.testing.assert_close(density[scene, 0], expected.clamp(min=0))
    inputs = painted.prod(0) if form == "cp" else torch.cat((painted[0], painted[1], painted[2]))
    hidden = F.gelu(F.linear(F.gelu(inputs), decoder.colour_in.weight, decoder.colour_in.bias))
    angles = [direction[scene, 0, axis] * 2**k for axis in range(3) for k in range(2)]
    codes = [angle.sin() for angle in angles] + [angle.cos() for angle in angles] + list(direction[scene, 0])
    expected = decoder.colour_mlp(torch.cat((hidden, torch.stack(codes)))).sigmoid()
    torch.testing.assert_close(colour[scene, 0], expected)


def test_the_box_can_be_of_any_size() -> None:
    small, large = make(half_side=0.8), make(half_side=2.4)
    torch.testing.assert_close(small.density(points(2, 50)), large.density(points(2, 50) * 3))


def test_density_ends_half_a_texel_outside_the_box() -> None:
    field = make(r=4)
    ones = Field(torch.ones_like(field.planes), torch.ones_like(field.lines), field.decoder)
    x = torch.tensor([0.0, 0.6, 0.8, 0.999, 1.001])  # half a texel is 0.2
    density = ones.density(F.pad(x[:, None], (0, 2)).expand(2, 5, 3))[0]
    assert density[0] == density[1] == 6 and 0 < density[3] < density[2] < 6 and density[4] == 0
    assert (Field(ones.planes, ones.lines, field.decoder, padding="border").density(points(2, 9) * 9) == 6).all()


def test_directions_code() -> None:
    code = encode_directions(torch.tensor([1.0, 0, -0.5]), 2)
    expected = [math.sin(a) for a in (1, 2, 0, 0, -0.5, -1)] + [math.cos(a) for a in (1, 2, 0, 0, -0.5, -1)]
    torch.testing.assert_close(code, torch.tensor([*expected, 1, 0, -0.5]))
    assert encode_directions(torch.tensor([1.0, 0, -0.5]), 0).tolist() == [1, 0, -0.5]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_everything(form: str) -> None:
    field = make(form)
    grids = [grid.requires_grad_() for grid in (field.planes, field.lines) if grid is not None]
    density, colour = field(points(2, 60), unit(2, 60))
    (density.square().sum() + colour.square().sum()).backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (*grids, *field.decoder.parameters()))


def test_one_scene_of_many() -> None:
    field = make(b=3)
    alone = field.scene(2)
    assert (alone.scenes, field.scenes, field.resolution) == (1, 3, 4)
    both = alone(points(3, 20)[2:], unit(3, 20)[2:]), field(points(3, 20), unit(3, 20))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours[0], theirs[2])


def test_under_autocast() -> None:
    field = make()
    with torch.autocast("cpu", torch.bfloat16):
        density, colour = field(points(2, 30), unit(2, 30))
    torch.testing.assert_close(density, field.density(points(2, 30)))
    assert (colour - field.colour(points(2, 30), unit(2, 30))).abs().max() < 0.02


@pytest.mark.parametrize(
    ("form", "keywords", "message"),
    [
        ("voxels", {}, "choose from vector_matrix"),
        ("cp", {"density": 0}, "density 0"),
        ("cp", {"hidden": 2.0}, "hidden 2.0"),
        ("cp", {"frequencies": 17}, "0 to 16"),
        ("cp", {"colour": True}, "colour True"),
    ],
)
def test_wrong_decoders(form: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FieldDecoder(form=form, **(SIZES | keywords))


def test_what_does_not_fit_together() -> None:
    good = make()
    planes, lines, decoder = good.planes, good.lines, good.decoder
    assert planes is not None and lines is not None
    for wrong in (
        (None, lines, decoder),
        (planes, None, decoder),
        (planes, lines, make("cp").decoder),
        (planes, lines, make("triplane").decoder),
        (planes[:, :, :4], lines, decoder),
        (planes[..., :3], lines, decoder),
        (planes, lines[..., :3], decoder),
        (planes, lines[:1], decoder),
        (planes[:, :2], lines, decoder),
        (planes, lines, decoder, 0.0),
        (planes, lines, decoder, math.nan),
        (planes, lines, decoder, 0.8, "reflection"),
    ):
        with pytest.raises(InputError, match="field"):
            Field(*wrong)


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form: str, tmp_path: Path) -> None:
    field = make(form, half_side=2, padding="border", facts={"near": 0.25, "far": 2, "from": "a photo"})
    field.save(tmp_path / "scene.safetensors")
    state = torch.get_rng_state()
    again = Field.load(str(tmp_path / "scene.safetensors"))
    assert torch.equal(state, torch.get_rng_state())
    assert (again.half_side, again.padding, again.facts) == (2, "border", {"near": 0.25, "far": 2, "from": "a photo"})
    for ours, theirs in zip(again(points(2, 20), unit(2, 20)), field(points(2, 20), unit(2, 20)), strict=True):
        assert torch.equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.safetensors"]


def test_a_part_of_a_field_in_half_precision(tmp_path: Path) -> None:
    field = make(b=3)
    half = Field(field.planes.half(), field.lines.half(), copy.deepcopy(field.decoder).half()).scene(1)
    half.save(tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").stat().st_size < 4000
    again = Field.load(tmp_path / "s.safetensors")
    assert again.planes is not None and again.planes.dtype == torch.float16 and again.scenes == 1
    pairs = zip(again(points(1, 9), unit(1, 9)), field.scene(1)(points(1, 9), unit(1, 9)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


@pytest.mark.parametrize("facts", [{"near": math.nan}, {"near": torch.zeros(1)}, {"note": "x" * 70_000}])
def test_facts_that_cannot_be_kept(facts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="facts of a field"):
        make(facts=facts).save(tmp_path / "scene.safetensors")
    assert list(tmp_path.iterdir()) == []


def lie(path: Path, about: dict[str, Any] | str | None = None, **tensors: Tensor | None) -> None:
    """Change what a saved scene says: its metadata, or some of its tensors (None takes one away)."""
    kept = load_file(path)
    kept |= {name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None}
    kept = {name: tensor for name, tensor in kept.items() if tensors.get(name.replace(".", "__"), tensor) is not None}
    truth = {"form": "vector_matrix", **SIZES, "half_side": 0.8, "padding": "zeros", "facts": {}}
    text = about if isinstance(about, str) else json.dumps(truth | (about or {}))
    save_file(kept, path, {"field": text})


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    make().save(tmp_path / "scene.safetensors")
    return tmp_path / "scene.safetensors"


def test_the_truth_loads(scene: Path) -> None:
    lie(scene)
    Field.load(scene)


@pytest.mark.parametrize(
    "about",
    [
        "",
        "nonsense",
        "[]",
        "[" * 60_000,
        json.dumps({"form": "cp"}),
        " " * 70_000 + "{}",
        {"form": 7},
        {"form": "voxels"},
        {"form": "cp"},
        {"density": 3},
        {"density": 1_000_000_000},
        {"hidden": 9},
        {"hidden": True},
        {"frequencies": -1},
        {"half_side": -1.0},
        {"half_side": math.inf},
        {"half_side": "0.8"},
        {"padding": "reflection"},
        {"facts": []},
        {"shade": "deep"},
    ],
)
def test_metadata_that_lie(scene: Path, about: dict[str, Any] | str) -> None:
    lie(scene, about)
    with pytest.raises(InputError) as caught:
        Field.load(scene)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "tensors",
    [
        {"planes": None},
        {"planes": torch.zeros(())},
        {"planes": torch.zeros(2, 3, 5, 4, 3)},
        {"planes": torch.zeros(3, 3, 5, 4, 4)},
        {"planes": torch.zeros(0, 3, 5, 4, 4), "lines": torch.zeros(0, 3, 5, 4)},
        {"planes": torch.zeros(2, 3, 5, 0, 0), "lines": torch.zeros(2, 3, 5, 0)},
        {"planes": torch.zeros(2, 3, 5, 4, 4, dtype=torch.int64)},
        {"planes": torch.full((2, 3, 5, 4, 4), math.nan)},
        {"lines": torch.full((2, 3, 5, 4), math.inf)},
        {"lines": None},
        {"decoder__colour_in__bias": None},
        {"decoder__colour_in__bias": torch.zeros(9)},
        {"decoder__hook": torch.zeros(1)},
        {"planes": torch.zeros(65, 3, 5, 1, 1), "lines": torch.zeros(65, 3, 5, 1)},
    ],
)
def test_tensors_that_lie(scene: Path, tensors: dict[str, Tensor | None]) -> None:
    lie(scene, **tensors)
    with pytest.raises(InputError) as caught:
        Field.load(scene)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_sizes_are_refused_before_a_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"texels": (make("cp", b=1, r=1025), {}), "numbers": (make(), {"MAX_NUMBERS": 500})}
    cases["channels"] = (make(), {"MAX_CHANNELS": 4})
    for i, (field, limits) in enumerate(cases.values()):
        field.save(tmp_path / f"{i}.safetensors")
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(module, name, value)
            with pytest.raises(InputError, match="at most 64 scenes"):
                Field.load(tmp_path / f"{i}.safetensors")


def test_files_that_are_no_scenes(tmp_path: Path, scene: Path) -> None:
    with pytest.raises(InputError, match="no scene at"):
        Field.load(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="no scene at"):
        Field.load(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(scene.read_bytes()[:-7])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04" + bytes(200))
    for name in ("cut", "empty", "pickle"):
        with pytest.raises(InputError, match=f"{name}.safetensors is damaged or no scene"):
            Field.load(tmp_path / f"{name}.safetensors")
    save_file({"planes": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is no scene"):
        Field.load(tmp_path / "other.safetensors")
