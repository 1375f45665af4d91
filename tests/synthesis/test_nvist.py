"""NViST: published sizes, forms and conditionings, what depends on what, precision, what is refused. Golden: parity."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.field import Field
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.nvist_config import VARIANTS
from belvedere.synthesis.vit import position_codes

SMALL: dict[str, Any] = {
    "image": [20, 10], "patch": 5, "dim": 24, "encoder_depth": 2, "encoder_heads": 3, "encoder_mlp_ratio": 2.0,
    "decoder_depth": 3, "decoder_heads": 2, "decoder_mlp_ratio": 2.0, "resolution": 12, "volume_patch": 3,
    "density": 4, "colour": 8, "hidden": 16, "samples": 8,
}  # fmt: skip
FORMS = ("vector_matrix", "triplane", "cp")


def small(**changes: Any) -> NViST:
    torch.manual_seed(0)
    return NViST(**(SMALL | changes)).eval()


def photographs(batch: int = 2, height: int = 20, width: int = 10) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def conditions(batch: int = 2) -> Tensor:
    return torch.tensor([[0.7, 1.1], [0.4, 0.9], [0.9, 1.4]])[:batch]


def volumes(model: NViST, image: Tensor, camera: Tensor) -> Tensor:
    """All numbers of the planes and lines, a row a picture."""
    with torch.no_grad():
        field = model(image, camera)
    return torch.cat([part.flatten(1) for part in (field.planes, field.lines) if part is not None], 1)


# Sizes


@pytest.mark.parametrize(("name", "count"), [("NViST", 214_620_291), ("NViST/2", 54_084_483), ("toybox", 5_560_358)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = NViST.from_variant(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert set(VARIANTS) == {"NViST", "NViST/2", "toybox"}


def test_parts_of_the_published_network() -> None:
    """The published counts less what that network stores and does not use, or does not train."""
    with torch.device("meta"):
        model = NViST.from_variant("NViST")
    codes = 577 * 768, 577 * 512, 817 * 768
    encoder = 85_854_208 - codes[0] - codes[1] - 512 - 2 * 768  # the rest: mask token and norm
    decoder = 130_141_824 - codes[2] - 6 * 4 * 768  # the rest: norms of keys and values in 6 blocks
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {"encoder": encoder, "decoder": decoder, "field_decoder": 10_755}


def test_the_constructor_alone_makes_the_published_network() -> None:
    with torch.device("meta"):
        model = NViST()
    assert {field: model.config[field] for field in VARIANTS["NViST"]} == VARIANTS["NViST"] | {"image": (160, 90)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("conditioning", ["adaln", "concat"])
def test_forms(form: str, conditioning: str) -> None:
    field = small(form=form, conditioning=conditioning)(photographs(), conditions())
    assert isinstance(field, Field)
    planes, lines = (None if part is None else tuple(part.shape) for part in (field.planes, field.lines))
    assert planes == (None if form == "cp" else (2, 3, 12, 12, 12))
    assert lines == (None if form == "triplane" else (2, 3, 12, 12))
    density, colour = field(torch.rand(2, 5, 3) - 0.5, torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=-1))
    assert density.shape == (2, 5) and colour.shape == (2, 5, 3) and density.min() >= 0


def test_a_field_is_told_its_box() -> None:
    field = small(half_side=0.6, padding="border")(photographs(), conditions())
    assert (field.half_side, field.padding) == (0.6, "border")


# What depends on what


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("conditioning", ["adaln", "concat"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_every_parameter_trains(form: str, conditioning: str, positions: str) -> None:
    model = small(form=form, conditioning=conditioning, positions=positions).train()
    field = model(photographs(), conditions())
    density, colour = field(torch.rand(2, 50, 3) - 0.5, torch.randn(2, 50, 3))
    (density.sum() + colour.sum()).backward()
    wrong = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []


@pytest.mark.parametrize("conditioning", ["adaln", "concat"])
def test_a_batch_is_its_pictures_one_by_one(conditioning: str) -> None:
    model, image, camera = small(conditioning=conditioning), photographs(3), conditions(3)
    alone = [volumes(model, image[i : i + 1], camera[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(volumes(model, image, camera), torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("conditioning", ["adaln", "concat"])
def test_a_field_depends_on_picture_distance_and_focal_length(conditioning: str) -> None:
    model, image, camera = small(conditioning=conditioning), photographs(1), conditions(1)
    want = volumes(model, image, camera)
    for other_image, shift in ((image.flip(3), [0, 0]), (image, [0.1, 0]), (image, [0, 0.1])):
        assert (volumes(model, other_image, camera + torch.tensor([shift])) - want).abs().max() > 1e-3


def test_without_focal_only_the_distance_counts() -> None:
    model, image = small(focal=False), photographs(1)
    want = volumes(model, image, torch.tensor([[0.7, 1.0]]))
    assert torch.equal(volumes(model, image, torch.tensor([[0.7, 2.0]])), want)
    assert not torch.equal(volumes(model, image, torch.tensor([[0.8, 1.0]])), want)


def test_input_norms() -> None:
    image = photographs()
    half = small(input_norm="half").encoder.normalise(image)
    torch.testing.assert_close(half, 2 * image - 1)
    red = small().encoder.normalise(image)[:, 0]
    torch.testing.assert_close(red, (image[:, 0] - 0.485) / 0.229)


# Tokens


def test_position_codes_by_hand() -> None:
    codes = position_codes(3, 5, 8, torch.empty(0), start=0.5)
    row, column = 2, 4
    want = [f(p * w) for p in (column + 0.5, row + 0.5) for f in (math.sin, math.cos) for w in (1, 0.01)]
    torch.testing.assert_close(codes[row * 5 + column], torch.tensor(want))


def test_the_encoder_takes_other_grids() -> None:
    model, image = small(), photographs(2, 15, 25)
    with torch.no_grad():
        assert model.encode(image).shape == (2, 16, 24)
        few = model.encoder(image, torch.tensor([[14, 3]]).expand(2, -1))
    assert few.shape == (2, 3, 24)


def test_learned_positions_begin_in_their_places() -> None:
    """Tokens of planes in columns 0 to 3 of a grid, the planes beneath one another, those of lines in column 4."""
    model = small(positions="learned")
    grid = position_codes(12, 5, 24, torch.empty(0), start=0.5).view(12, 5, 24)
    positions = model.decoder.positions.detach()
    assert torch.equal(positions[:48].view(12, 4, 24), grid[:, :4]) and torch.equal(positions[48:], grid[:, 4])
    assert torch.equal(model.decoder.codes(torch.empty(0, 24)), grid.flatten(0, 1))


def test_each_token_makes_its_own_part_of_the_volume() -> None:
    decoder = small().decoder
    with torch.no_grad():
        quiet = decoder._planes(torch.zeros(1, 48, 24)), decoder._lines(torch.zeros(1, 12, 24))
        tokens = torch.zeros(1, 48, 24).index_fill(1, torch.tensor([16 + 4 * 1 + 2]), 1) * torch.arange(24)
        line_tokens = torch.zeros(1, 12, 24).index_fill(1, torch.tensor([2 * 4 + 3]), 1) * torch.arange(24)
        planes, lines = decoder._planes(tokens), decoder._lines(line_tokens)
    moved = (planes != quiet[0]).any(2)[0].nonzero()  # plane, row, column
    assert moved.amin(0).tolist() == [1, 3, 6] and moved.amax(0).tolist() == [1, 5, 8]
    moved = (lines != quiet[1]).any(2)[0].nonzero()  # line, place
    assert moved.amin(0).tolist() == [2, 9] and moved.amax(0).tolist() == [2, 11]


# Precision, saving, compiling


def test_half_precision_leaves_the_field_in_float32() -> None:
    model, image, camera = small(), photographs(), conditions()
    want, weight = volumes(model, image, camera), model.field_decoder.colour_in.weight.clone()
    model.to(torch.bfloat16)
    field = model(image, camera)
    assert field.planes.dtype == field.lines.dtype == torch.float32
    assert model.encoder.embed.weight.dtype == torch.bfloat16
    assert torch.equal(model.field_decoder.colour_in.weight, weight)  # not rounded on the way
    points = torch.rand(2, 5, 3) - 0.5
    assert all(part.dtype == torch.float32 for part in field(points, points))
    assert (volumes(model, image, camera) - want).norm() < 0.05 * want.norm()


def test_autocast_is_close() -> None:
    model, image, camera = small(), photographs(), conditions()
    with torch.autocast("cpu", torch.bfloat16):
        got = volumes(model, image, camera)
    want = volumes(model, image, camera)
    assert got.dtype == torch.float32 and (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("form", FORMS)
def test_saves_and_loads(tmp_path: Path, form: str) -> None:
    model = small(form=form, positions="learned")
    model.save_pretrained(tmp_path)
    again = NViST.from_pretrained(tmp_path).eval()
    assert torch.equal(volumes(again, photographs(), conditions()), volumes(model, photographs(), conditions()))
    half = NViST.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.field_decoder.colour_in.weight.dtype == torch.float32 and half.dtype == torch.bfloat16


def test_half_precision_files_give_a_network_that_works(tmp_path: Path) -> None:
    small().to(torch.float16).save_pretrained(tmp_path)
    again, want = NViST.from_pretrained(tmp_path), volumes(small(), photographs(), conditions())
    assert (volumes(again, photographs(), conditions()) - want).norm() < 0.01 * want.norm()


def test_weights_assigned_in_half_precision_leave_the_field_in_float32() -> None:
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in small().state_dict().items()}
    with torch.device("meta"):
        model = NViST(**SMALL)
    model.load_state_dict(weights, assign=True)
    points = torch.rand(2, 5, 3) - 0.5
    density, colour = model(photographs(), conditions())(points, points)
    assert model.dtype == torch.bfloat16 and density.dtype == colour.dtype == torch.float32


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for again in (False, True):
        model = small().train()
        if again:
            model.enable_gradient_checkpointing()
            assert model.encoder.blocks.gradient_checkpointing and model.decoder.blocks.gradient_checkpointing
        model(photographs(), conditions()).planes.square().sum().backward()
        gradients.append([p.grad for p in model.encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_training_works_after_inference_mode() -> None:
    model = small(image=[25, 35]).train()  # a grid that no other test has met
    with torch.inference_mode():
        model(photographs(1, 25, 35), conditions(1))
    model(photographs(1, 25, 35), conditions(1)).planes.sum().backward()
    assert model.encoder.embed.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    model, image, camera = small(), photographs(), conditions()

    def run(image: Tensor, camera: Tensor) -> tuple[Tensor | None, ...]:
        return model.decode(model.encode(image), camera)[:2]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for got, want in zip(compiled(image, camera), run(image, camera), strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": [20, 11]}, r"image \[20, 11\]: must be \[height, width\], multiples of the patch of 5"),
        ({"image": 20}, "image 20: must be"),
        ({"image": [4000, 4000], "patch": 1}, "too many tokens"),
        ({"dim": 25}, "dim 25: must be a multiple of the 3 encoder_heads"),
        ({"dim": 6}, "dim 6: must be a multiple of 4"),
        ({"decoder_heads": None}, "decoder_heads None: must be an integer from 1"),
        ({"encoder_mlp_ratio": 0}, "encoder_mlp_ratio 0: must be above 0"),
        ({"resolution": 13}, "resolution 13: must be a multiple of volume_patch 3"),
        ({"resolution": 1000, "volume_patch": 1}, "too many tokens"),
        ({"form": "voxels"}, "form 'voxels': choose from vector_matrix, triplane, cp"),
        ({"conditioning": "film"}, "conditioning 'film': choose from adaln, concat"),
        ({"positions": "rope"}, "positions 'rope': choose from sincos, learned"),
        ({"input_norm": "none"}, "input_norm 'none': choose from imagenet, half"),
        ({"padding": "reflection"}, "padding 'reflection': choose from zeros, border"),
        ({"near": 2.0}, r"near 2.0, far 1.8: give 0 <= near < far"),
        ({"far": float("nan")}, "give 0 <= near < far"),
        ({"far": "away"}, "far 'away': must be a number"),
        ({"half_side": 0}, "half_side 0: must be above 0"),
        ({"focal": 1}, "focal 1: must be true or false"),
        ({"samples": 0}, "samples 0: must be an integer from 1"),
    ],
)
def test_bad_configs_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**change)


@pytest.mark.parametrize("shape", [(1, 3, 10, 20), (1, 3, 25, 10), (1, 1, 20, 10), (3, 20, 10)])
def test_pictures_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"image \(.*\): this network takes \(b, 3, 20, 10\)"):
        small()(torch.zeros(shape), conditions(1))


def test_parts_that_do_not_fit() -> None:
    model = small()
    with pytest.raises(InputError, match=r"pictures \(1, 3, 21, 10\): give \(b, 3, h, w\), sides multiples of 5"):
        model.encode(torch.zeros(1, 3, 21, 10))
    with pytest.raises(InputError, match=r"latent \(2, 16, 24\): give \(b, 9, c\)"):
        model.decode(model.encode(photographs(2, 15, 25)), conditions())
    with pytest.raises(InputError, match=r"conditions \(3, 2\): give distance and focal, \(2, 2\)"):
        model(photographs(), conditions(3))


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match="no NViST variant 'XL': choose from NViST, "):
        NViST.from_variant("XL")


def test_a_learned_background_is_of_the_picture() -> None:
    model = small(background="learned")
    assert small().decoder.background is None
    with torch.no_grad():
        field = model(photographs(2), conditions(2))
    assert field.background is not None and field.background.shape == (2, 3)
    assert not torch.equal(field.background[0], field.background[1])
    assert torch.equal(field.scene(1).background, field.background[1:])
