"""NViST's published weights: every name, unused tensors, files, starts from autoencoders, what is refused.

Golden outputs are in parity."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_mae import start_decoder, start_encoder
from belvedere.checkpoints.official_nvist import infer_nvist, nvist_names, to_official
from belvedere.checkpoints.tensors import unwrap
from belvedere.errors import InputError
from belvedere.synthesis.mae import MAE
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.nvist_config import VARIANTS
from belvedere.synthesis.vit import position_codes

GOLDEN = Path(__file__).parents[1] / "golden" / "nvist_full_vm"
UNTOLD = {"near": 0.15, "far": 1.9, "encoder_heads": 3, "decoder_heads": 2, "samples": 12}
"""What the golden weights do not tell."""
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture
def golden() -> dict[str, Tensor]:
    """Official weights of a small network."""
    return {name[3:]: x for name, x in load_file(GOLDEN.with_suffix(".safetensors")).items() if name.startswith("sd.")}


def linear(name: str, o: int, i: int) -> Shapes:
    return {f"{name}.weight": (o, i), f"{name}.bias": (o,)}


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def vit(start: str, dim: int, patch: int, tokens: int, depth: int = 12, mlp: int = 4) -> Shapes:
    """A transformer as masked autoencoding stores it (He et al.), without the autoencoder's decoder."""
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim), "mask_token": (1, 1, 512)}
    shapes |= {"decoder_pos_embed": (1, tokens, 512)} | norm("norm", dim)
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
        shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
        shapes |= linear(f"{block}.mlp.fc1", mlp * dim, dim) | linear(f"{block}.mlp.fc2", dim, mlp * dim)
    return {f"{start}{name}": shape for name, shape in shapes.items()}


def published(adaln: bool = True) -> dict[str, Tensor]:
    """The published checkpoint's list of tensors (specification, section 9); only positions have numbers."""
    dim = 768
    shapes = vit("encoder.", dim, 5, 577)
    shapes |= {"decoder.decoder_pos_embed": (1, 817, dim), "decoder.encoded_patches_pos_embed": (1, 576, dim)}
    shapes |= {"decoder.output_token": (1, 1, dim)}
    shapes |= linear("decoder.camera_params_embed.0", dim, 18) | linear("decoder.camera_params_embed.2", dim, dim)
    for i in range(12):
        block = f"decoder.blocks.{i}"
        norms = ("norm_k", "norm_v") if adaln else ("norm1", "norm2", "norm_k", "norm_v")
        shapes |= linear(f"{block}.adaLN_modulation.1", 6 * dim, dim) if adaln else {}
        for part in ("q", "k", "v", "proj"):
            shapes |= linear(f"{block}.attn.{part}", dim, dim)
        for part in norms:
            shapes |= norm(f"{block}.{part}", dim)
        shapes |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
    shapes |= norm("decoder.decoder_out_norm.0", dim) | norm("decoder.decoder_vector_norm.0", dim)
    for j in range(3):
        shapes |= linear(f"decoder.decoder_pred.{j}", 288, dim) | linear(f"decoder.decoder_vector_pred.{j}", 96, dim)
    shapes |= linear("renderer.rgb_matrix.1", 64, 72)
    shapes |= linear("renderer.rgb_mlp.0", 64, 91) | linear("renderer.rgb_mlp.2", 3, 64)
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    weights["encoder.pos_embed"] = table(32, 18, dim, 0.0)
    weights["decoder.decoder_pos_embed"] = table(48, 17, dim, 0.5)
    return weights


def table(rows: int, columns: int, dim: int, start: float) -> Tensor:
    codes = position_codes(rows, columns, dim, torch.empty(0), start)
    return torch.cat((torch.zeros(1, dim), codes))[None]


def digest(weights: dict[str, Tensor]) -> dict[str, float]:
    return {name: x.double().square().sum().item() for name, x in weights.items()}


# The published file


def test_the_published_file_fits_by_name_and_shape() -> None:
    weights = published()
    assert len(weights) == 397 and sum(x.numel() for x in weights.values()) == 216_006_787
    model = load_official("nvist", weights, {"near": 0.3, "far": 1.9})
    assert sum(p.numel() for p in model.parameters()) == 214_620_291
    assert {field: model.config[field] for field in VARIANTS["NViST"]} == VARIANTS["NViST"]
    with torch.device("meta"):
        default = NViST(image=[160, 90], near=0.3, far=1.9).config
    assert {k: v for k, v in model.config.items() if k[0] != "_"} == {k: v for k, v in default.items() if k[0] != "_"}


def test_what_is_dropped_is_unused_or_evaluated() -> None:
    weights = published()
    kept = {id(tensor) for tensor in nvist_names(weights).values()}
    dropped = {name for name, tensor in weights.items() if id(tensor) not in kept}
    norms = {f"decoder.blocks.{i}.norm_{of}" for i in range(1, 12, 2) for of in "kv"} | {"encoder.norm"}
    others = {"encoder.mask_token", "encoder.decoder_pos_embed", "encoder.pos_embed", "decoder.decoder_pos_embed"}
    assert dropped == others | {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    assert sum(weights[name].numel() for name in dropped) == 216_006_787 - 214_620_291


def test_without_adaln_the_condition_is_a_token_and_no_norm_is_idle() -> None:
    model = load_official("nvist", published(adaln=False), {"near": 0.3, "far": 1.9})
    assert model.config.conditioning == "concat" and model.decoder.blocks[1].norm_k is not None


def test_importing_copies_every_number(golden: dict[str, Tensor]) -> None:
    model = load_official("nvist", golden, UNTOLD)
    assert digest(model.state_dict()) == digest(nvist_names(golden))
    with torch.no_grad():
        model.decoder.token.add_(1)
    assert not torch.equal(golden["decoder.output_token"], model.decoder.token)


def test_there_and_back(golden: dict[str, Tensor]) -> None:
    back = to_official(load_official("nvist", golden, UNTOLD))
    unused = {"encoder.norm.weight", "encoder.norm.bias", "encoder.mask_token", "encoder.decoder_pos_embed"}
    unused |= {f"decoder.blocks.{i}.norm_{of}.{part}" for i in (1, 3) for of in "kv" for part in ("weight", "bias")}
    assert back.keys() == golden.keys()
    for name in golden.keys() - unused:
        torch.testing.assert_close(back[name], golden[name], atol=1e-6, rtol=0)
    with torch.device("meta"):
        model = NViST()
    shapes = {name: tuple(tensor.shape) for name, tensor in to_official(model).items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in published().items()}


@pytest.mark.parametrize("change", [{"form": "triplane"}, {"positions": "learned"}])
def test_what_the_official_network_cannot_have_is_not_exported(change: dict[str, Any]) -> None:
    model = NViST(image=[20, 10], dim=24, encoder_depth=1, encoder_heads=2, decoder_depth=1, decoder_heads=2, **change)
    with pytest.raises(InputError, match="the official network has no such"):
        to_official(model)


def test_a_training_checkpoint_gives_the_same_network(golden: dict[str, Tensor]) -> None:
    saved = {"state_dict": {f"module.{name}": x for name, x in golden.items()}, "iteration": 5000}
    model, want = load_official("nvist", unwrap(saved, "nvist.pth"), UNTOLD), load_official("nvist", golden, UNTOLD)
    assert digest(model.state_dict()) == digest(want.state_dict())


def test_half_precision_files_keep_the_field_in_float32(golden: dict[str, Tensor]) -> None:
    model = load_official("nvist", {name: x.half() for name, x in golden.items()}, UNTOLD)
    assert model.encoder.embed.weight.dtype == torch.float16
    assert model.field_decoder.colour_in.weight.dtype == torch.float32


def test_sizes_are_read_from_shapes_and_positions(golden: dict[str, Tensor]) -> None:
    config, told = infer_nvist(golden), json.loads(GOLDEN.with_suffix(".json").read_text())["config"]
    assert config == {
        "image": told["img_size"],
        "patch": told["encoder"]["patch_size"],
        "dim": told["encoder"]["embed_dim"],
        "encoder_depth": told["encoder"]["depth"],
        "encoder_heads": None,
        "encoder_mlp_ratio": told["encoder"]["mlp_ratio"],
        "decoder_depth": told["decoder"]["decoder_depth"],
        "decoder_heads": None,
        "decoder_mlp_ratio": told["decoder"]["mlp_ratio"],
        "resolution": told["decoder"]["resolution"],
        "volume_patch": told["decoder"]["decoder_patch_size"],
        "density": told["renderer"]["sigma_dim"],
        "colour": told["renderer"]["rgb_dim"],
        "hidden": told["renderer"]["rgb_feature_dim"],
        "direction_frequencies": told["renderer"]["viewdir_pe"],
        "camera_frequencies": told["decoder"]["camera_params_pe_freq"],
        "focal": told["decoder"]["apply_focal_condition"],
        "conditioning": "adaln",
    }


def test_one_condition_is_the_distance_alone(golden: dict[str, Tensor]) -> None:
    golden["decoder.camera_params_embed.0.weight"] = torch.zeros(24, 9)
    model = load_official("nvist", golden, UNTOLD)
    assert (model.config.focal, model.config.camera_frequencies) == (False, 4)


def test_pictures_on_their_side(golden: dict[str, Tensor]) -> None:
    golden["encoder.pos_embed"] = table(2, 4, 24, 0.0)
    assert load_official("nvist", golden, UNTOLD).config.image == [10, 20]


# What is refused


@pytest.mark.parametrize("config", [None, {}, {"near": 0.1}, {"samples": 48}, "NViST"])
def test_near_and_far_must_be_given(golden: dict[str, Tensor], config: Any) -> None:
    with pytest.raises(InputError, match=r'pass config=\{"near": \.\.\., "far": \.\.\.\}'):
        load_official("nvist", golden, config)


def test_what_the_file_tells_is_not_to_be_given(golden: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="NViST field 'dim': the file tells all but near, far, encoder_heads"):
        load_official("nvist", golden, UNTOLD | {"dim": 24})


def test_heads_that_nobody_knows_must_be_given(golden: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="encoder_heads None: must be an integer from 1"):
        load_official("nvist", golden, {"near": 0.1, "far": 2.0})


@pytest.mark.parametrize("name", ["encoder.pos_embed", "decoder.decoder_pos_embed"])
def test_other_positions_are_refused(golden: dict[str, Tensor], name: str) -> None:
    trained, wider = golden[name] + 0.01, torch.zeros(*golden[name].shape[:2], 26)
    for other in (trained, wider):
        with pytest.raises(InputError, match=f"{name} are not the"):
            load_official("nvist", golden | {name: other}, UNTOLD)


def test_differences_are_listed(golden: dict[str, Tensor]) -> None:
    del golden["decoder.blocks.2.attn.q.bias"]
    golden |= {"surprise": torch.zeros(1), "decoder.decoder_pred.2.bias": torch.zeros(3)}
    with pytest.raises(InputError) as error:
        load_official("nvist", golden, UNTOLD)
    message = str(error.value)
    assert "3 differences" in message and "missing decoder.blocks.2.attention.q.bias" in message
    assert "unexpected surprise" in message and "decoder.plane_heads.linears.2.bias is (3,), not (108,)" in message


@pytest.mark.parametrize("name", ["encoder.norm.weight", "decoder.blocks.1.norm_k.bias", "encoder.mask_token"])
def test_unused_tensors_may_be_missing(golden: dict[str, Tensor], name: str) -> None:
    del golden[name]
    load_official("nvist", golden, UNTOLD)


def test_two_names_of_one_tensor_are_refused(golden: dict[str, Tensor]) -> None:
    golden["decoder.token"] = torch.zeros(1, 1, 24)
    with pytest.raises(InputError, match="under two names: the file is inconsistent"):
        load_official("nvist", golden, UNTOLD)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("encoder.patch_embed.proj.weight", torch.zeros(24, 75)),
        ("decoder.decoder_vector_pred.0.weight", torch.zeros(0, 24)),
        ("encoder.pos_embed", torch.zeros(9, 24)),
        ("renderer.rgb_matrix.1.weight", None),
    ],
)
def test_other_weights_are_named(golden: dict[str, Tensor], name: str, tensor: Tensor | None) -> None:
    golden = {key: x for key, x in golden.items() if key != name} | ({} if tensor is None else {name: tensor})
    with pytest.raises(InputError, match=f"these are not NViST weights: {name} is missing or has another form"):
        load_official("nvist", golden, UNTOLD)


# Starts from masked autoencoders


SMALL = {"dim": 24, "encoder_depth": 2, "encoder_heads": 3, "encoder_mlp_ratio": 2.0}


def autoencoder(patch: int = 16, depth: int = 3) -> dict[str, Tensor]:
    """An official masked autoencoder of the small network's width, with other patches and more blocks."""
    shapes = vit("", 24, patch, 197, depth, mlp=2) | linear("decoder_embed", 16, 24) | norm("decoder_norm", 16)
    shapes |= {"mask_token": (1, 1, 16), "decoder_pos_embed": (1, 197, 16)} | linear("decoder_pred", 3 * patch**2, 16)
    block = vit("decoder_", 16, patch, 197, 1, mlp=2)
    shapes |= {name: shape for name, shape in block.items() if name.startswith("decoder_blocks.")}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_pretraining_begins_with_all_that_fits_of_the_published_one() -> None:
    model = MAE(patch=5, **SMALL, decoder_dim=16, decoder_depth=1, decoder_heads=2)
    official = autoencoder()
    taken = start_encoder(model, {"model": official})
    assert set(model.state_dict()) - set(taken) == {"encoder.embed.weight", "head.weight", "head.bias"}
    ours = model.state_dict()
    assert torch.equal(ours["encoder.embed.bias"], official["patch_embed.proj.bias"])
    assert torch.equal(ours["encoder.blocks.1.attention.out.weight"], official["blocks.1.attn.proj.weight"])
    assert torch.equal(ours["decoder_blocks.0.mlp.project_in.weight"], official["decoder_blocks.0.mlp.fc1.weight"])
    assert torch.equal(ours["norm.weight"], official["norm.weight"])


def nvist() -> NViST:
    return NViST(image=[20, 10], **SMALL, decoder_depth=4, decoder_heads=2, decoder_mlp_ratio=2.0, resolution=6)


def test_the_encoder_begins_with_a_pretrained_one(golden: dict[str, Tensor], tmp_path: Path) -> None:
    model, official = nvist(), {name: x for name, x in golden.items() if name.startswith("encoder.")}
    before = {name: x.clone() for name, x in model.state_dict().items()}
    save_file(official, tmp_path / "model.safetensors")
    taken = start_encoder(model, tmp_path / "model.safetensors")
    assert set(taken) == {name for name in before if name.startswith("encoder.")}
    want = nvist_names(official)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, want[name] if name in taken else before[name])


def test_the_decoder_begins_with_maps_of_a_transformer() -> None:
    model, official = nvist(), autoencoder()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    taken = start_decoder(model, {"model": official})
    parts = ("attention.out", "mlp.project_in", "mlp.project_out")
    assert set(taken) == {
        f"decoder.blocks.{i}.{part}.{kind}" for i in range(3) for part in parts for kind in ("weight", "bias")
    }
    after = model.state_dict()
    assert torch.equal(after["decoder.blocks.2.mlp.project_out.weight"], official["blocks.2.mlp.fc2.weight"])
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - set(taken))


def test_a_start_from_other_weights_is_refused() -> None:
    for start in (start_encoder, start_decoder):
        with pytest.raises(InputError, match="nothing in these weights fits"):
            start(nvist(), {"stages.0.weight": torch.zeros(1)})
