"""FiTv2's published weights: the published lists of tensors, every form of adaLN, files, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_fitv2 import extrapolation_name, fitv2_config, fitv2_names
from belvedere.errors import InputError
from belvedere.generation.fitv2 import FiTv2

GOLDEN = Path(__file__).parents[1] / "golden"
SWIGLU = {
    "patch_size": 2, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 4,
    "q_norm": "layernorm", "k_norm": "layernorm", "use_swiglu": True, "adaln_type": "swiglu",
}  # fmt: skip


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    description = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return description["config"], {key[3:]: x for key, x in tensors.items() if key.startswith("sd.")}, tensors


def linear(name: str, o: int, i: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (o, i), f"{name}.bias": (o,)}


def published(dim: int, depth: int, rank: int, hidden: int) -> dict[str, Tensor]:
    """The published checkpoint's list of tensors (specification, section 8), without memory."""
    shapes = linear("x_embedder.proj", dim, 16)
    shapes |= linear("t_embedder.mlp.0", dim, 256) | linear("t_embedder.mlp.2", dim, dim)
    shapes |= {"y_embedder.embedding_table.weight": (1001, dim)}
    shapes |= linear("global_adaLN_modulation.1", 6 * dim, dim)
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
        shapes |= linear(f"{block}.mlp.fc1_g", hidden, dim) | linear(f"{block}.mlp.fc1_x", hidden, dim)
        shapes |= linear(f"{block}.mlp.fc2", dim, hidden)
        shapes |= linear(f"{block}.adaLN_modulation.1", rank, dim)
        shapes |= linear(f"{block}.adaLN_modulation.2", 6 * dim, rank)
    shapes |= linear("final_layer.linear", 16, dim) | linear("final_layer.adaLN_modulation.1", 2 * dim, dim)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


XL, LARGE = (1152, 36, 288, 3072), (2304, 40, 576, 6144)


def swiglu() -> dict[str, Tensor]:
    """Official names of a network with adaLN swiglu (specification, 3.1 and 3.2), random numbers."""
    dim, inner = 32, 24  # 3 (D // 4)
    shapes = linear("x_embedder.proj", dim, 16)
    shapes |= linear("t_embedder.mlp.0", dim, 256) | linear("t_embedder.mlp.2", dim, dim)
    shapes |= {"y_embedder.embedding_table.weight": (5, dim)}
    for i in range(2):
        block = f"blocks.{i}"
        shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
        shapes |= linear(f"{block}.mlp.fc1_g", 85, dim) | linear(f"{block}.mlp.fc1_x", 85, dim)
        shapes |= linear(f"{block}.mlp.fc2", dim, 85)
        shapes |= linear(f"{block}.adaLN_modulation.fc1_g", inner, dim)
        shapes |= linear(f"{block}.adaLN_modulation.fc1_x", inner, dim)
        shapes |= linear(f"{block}.adaLN_modulation.fc2", 6 * dim, inner)
    shapes |= linear("final_layer.adaLN_modulation.fc1_g", dim // 2, dim)
    shapes |= linear("final_layer.adaLN_modulation.fc1_x", dim // 2, dim)
    shapes |= linear("final_layer.adaLN_modulation.fc2", 2 * dim, dim // 2) | linear("final_layer.linear", 16, dim)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


# The published files


@pytest.mark.parametrize(("sizes", "tensors"), [(XL, 517), (LARGE, 573)])
def test_published_files_fit_by_name_and_shape(sizes: tuple[int, ...], tensors: int) -> None:
    weights = published(*sizes)
    assert len(weights) == tensors
    model = load_official("fitv2", weights)
    assert (model.config.dim, model.config.depth) == sizes[:2]
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: tensor.shape for name, tensor in fitv2_names(weights).items()
    }
    assert sum(p.numel() for p in model.parameters()) == sum(x.numel() for x in weights.values())


def test_high_resolution_files_are_named() -> None:
    weights = published(*XL)
    named, inferred = load_official("fitv2", weights, "HR-XL/2"), load_official("fitv2", weights)
    assert (named.config.extrapolation, inferred.config.extrapolation) == ("vision-ntk", "none")


@pytest.mark.parametrize("name", ["fitv2_lora", "fitv2_variant"])
def test_importing_copies_every_number(name: str) -> None:
    config, state, _ = golden(name)
    model = load_official("fitv2", state, config)
    assert sum(p.numel() for p in model.parameters()) == sum(x.numel() for x in state.values())
    total = sum(x.double().abs().sum() for x in state.values())
    torch.testing.assert_close(sum(p.double().abs().sum() for p in model.parameters()), total)
    before = state["x_embedder.proj.bias"].clone()
    with torch.no_grad():
        model.embed.bias.add_(1)
    assert torch.equal(state["x_embedder.proj.bias"], before)


@pytest.mark.parametrize("suffix", [pytest.param("bin", marks=pytest.mark.slow), "safetensors"])
def test_files_of_both_kinds_give_the_golden_output(tmp_path: Path, suffix: str) -> None:
    config, state, tensors = golden("fitv2_lora")
    path = tmp_path / f"model_ema.{suffix}"
    torch.save(state, path) if suffix == "bin" else save_file(state, path)
    model = load_official("fitv2", path, config)
    with torch.no_grad():
        got = model(*(tensors[f"base0.{name}"] for name in ("x", "t", "y", "grid", "mask")))
    torch.testing.assert_close(got, tensors["base0.out"], atol=2e-5, rtol=1e-4)


def test_a_pickle_that_calls_itself_safetensors_is_refused(tmp_path: Path) -> None:
    config, state, _ = golden("fitv2_lora")
    torch.save(state, tmp_path / "model_ema.safetensors")
    with pytest.raises(InputError, match=r"pickle or zip archive renamed \.safetensors; refused"):
        load_official("fitv2", tmp_path / "model_ema.safetensors", config)


def test_imported_network_saves_and_loads(tmp_path: Path) -> None:
    config, state, tensors = golden("fitv2_variant")
    model = load_official("fitv2", state, config)
    model.save_pretrained(tmp_path)
    inputs = [tensors[f"base0.{name}"] for name in ("x", "t", "y", "grid", "mask")]
    assert torch.equal(FiTv2.from_pretrained(tmp_path)(*inputs), model(*inputs))


def test_tables_of_positions_are_not_weights() -> None:
    config, state, _ = golden("fitv2_lora")
    tables = {name: torch.zeros(4) for name in ("pos_embed", "abs_pos_embed", "rel_pos_embed.freqs_h", "freqs")}
    load_official("fitv2", state | tables, config)


# adaLN by SwiGLU


def test_swiglu_modulation_is_the_official_formula() -> None:
    weights = swiglu()
    model = load_official("fitv2", weights, SWIGLU)
    condition = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))

    def of(name: str) -> Tensor:
        def apply(layer: str, x: Tensor) -> Tensor:
            return x @ weights[f"{name}.{layer}.weight"].T + weights[f"{name}.{layer}.bias"]

        gate = apply("fc1_g", condition)
        return apply("fc2", gate * gate.sigmoid() * apply("fc1_x", condition))

    names = [*(f"blocks.{i}.adaLN_modulation" for i in range(2)), "final_layer.adaLN_modulation"]
    torch.testing.assert_close(model.modulation(condition), torch.cat([of(name) for name in names], -1))


def test_every_swiglu_tensor_is_found_again() -> None:
    weights = swiglu()
    ours = load_official("fitv2", weights, SWIGLU).state_dict()
    for i in range(2):
        down, up = ours["modulation.down.weight"].chunk(2)[i], ours["modulation.up_weight"][i]
        name = f"blocks.{i}.adaLN_modulation"
        assert torch.equal(down, torch.cat([weights[f"{name}.fc1_{half}.weight"] for half in "gx"]))
        assert torch.equal(up, weights[f"{name}.fc2.weight"])
    assert sum(x.numel() for x in ours.values()) == sum(x.numel() for x in weights.values())


# Configs


def test_official_fields_by_hand() -> None:
    lora = fitv2_config(golden("fitv2_lora")[0])
    assert (lora["mlp"], lora["num_classes"], lora["q_norm"], lora["adaln"]) == ("swiglu", 11, "layernorm", "lora")
    variant = fitv2_config(golden("fitv2_variant")[0])
    assert (variant["q_norm"], variant["k_norm"], variant["norm"]) == ("w_layernorm", "w_rmsnorm", "w_rmsnorm")
    assert (variant["mlp"], variant["adaln"], variant["rotate_v"]) == ("gelu", "normal", True)
    assert (variant["rope_theta"], variant["time_shift"], variant["channels_first"]) == (100.0, 3, False)
    v1 = fitv2_config(SWIGLU | {"use_swiglu_large": True, "use_sit": False, "learn_sigma": True, "q_norm": None})
    assert (v1["mlp"], v1["channels_first"], v1["learn_sigma"], v1["q_norm"]) == ("swiglu_large", True, True, "none")


@pytest.mark.parametrize(
    ("mode", "decouple", "name"),
    [
        ("normal", False, "none"),
        ("normal", True, "none"),
        ("linear", True, "vision-pi"),
        ("ntk-aware", False, "ntk"),
        ("ntk-aware", True, "vision-ntk"),
        ("ntk-aware-pro1", False, "ntk-pro1"),
        ("ntk-aware-pro2", True, "vision-ntk-pro2"),
        ("ntk-by-parts", False, "ntk-by-parts"),
        ("yarn", True, "vision-yarn"),
    ],
)
def test_official_names_of_extrapolation(mode: str, decouple: bool, name: str) -> None:
    assert extrapolation_name(mode, decouple) == name
    assert fitv2_config(SWIGLU | {"custom_freqs": mode, "decouple": decouple})["extrapolation"] == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wings": 2}, "unknown official FiTv2 field 'wings': known are patch_size"),
        ({"custom_freqs": "dynntk"}, "official custom_freqs 'dynntk': known are normal, linear, ntk-aware"),
        ({"q_norm": "rmsnorm"}, "official q_norm 'rmsnorm'"),
        ({"norm_type": "batchnorm"}, "official norm_type 'batchnorm'"),
        ({"rel_pos_embed": "sincos"}, "official rel_pos_embed 'sincos': only 'rope'"),
        ({"class_dropout_prob": 0}, "class_dropout_prob 0"),
        ({"adaln_type": "single"}, "adaln 'single': choose from lora"),
    ],
)
def test_official_fields_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_official("fitv2", swiglu(), SWIGLU | change)


@pytest.mark.parametrize("field", ["num_classes", "q_norm", "hidden_size"])
def test_official_fields_that_are_missing_are_named(field: str) -> None:
    config = {key: value for key, value in SWIGLU.items() if key != field}
    with pytest.raises(InputError, match=field):
        load_official("fitv2", swiglu(), config)


def test_unknown_variants_list_the_known_ones() -> None:
    with pytest.raises(InputError, match="no variant 'XXL/2': choose from B/2, XL/2"):
        load_official("fitv2", published(*XL), "XXL/2")


def test_weights_of_no_published_size_ask_for_their_config() -> None:
    with pytest.raises(InputError, match="not published FiTv2 weights: pass config="):
        load_official("fitv2", golden("fitv2_lora")[1])


# Weights that do not fit


def test_differences_are_listed() -> None:
    config, state, _ = golden("fitv2_lora")
    del state["blocks.0.attn.proj.bias"]
    state["final_layer.linear.bias"] = torch.zeros(3)
    state["surprise"] = torch.zeros(1)
    with pytest.raises(InputError) as error:
        load_official("fitv2", state, config)
    message = str(error.value)
    assert "3 differences" in message and "missing blocks.0.attention.out.bias" in message
    assert "unexpected surprise" in message and "head.bias is (3,), not (16,)" in message


@pytest.mark.parametrize("name", ["blocks.1.mlp.fc1_x.bias", "blocks.0.mlp.fc1_g.weight"])
def test_half_of_a_swiglu_is_not_enough(name: str) -> None:
    config, state, _ = golden("fitv2_lora")
    del state[name]
    with pytest.raises(InputError, match=r"one half of mlp\.fc1 but not the other: the file is incomplete"):
        load_official("fitv2", state, config)


@pytest.mark.parametrize("name", ["blocks.1.adaLN_modulation.fc1_x.weight", "final_layer.adaLN_modulation.fc1_g.bias"])
def test_half_of_a_modulation_is_not_enough(name: str) -> None:
    weights = swiglu()
    del weights[name]
    with pytest.raises(InputError, match=r"adaLN_modulation\.fc1 but not the other: the file is incomplete"):
        load_official("fitv2", weights, SWIGLU)


@pytest.mark.parametrize("layer", ["1.weight", "1.bias", "2.weight", "2.bias"])
def test_a_block_without_its_modulation_is_not_enough(layer: str) -> None:
    config, state, _ = golden("fitv2_lora")
    del state[f"blocks.1.adaLN_modulation.{layer}"]
    with pytest.raises(InputError, match=r"modulation\.|adaLN_modulation"):
        load_official("fitv2", state, config)


@pytest.mark.parametrize("name", ["blocks.1.adaLN_modulation.2.weight", "blocks.1.mlp.fc1_g.weight"])
def test_blocks_of_different_shapes_are_refused(name: str) -> None:
    config, state, _ = golden("fitv2_lora")
    state[name] = state[name][:, :-1]
    with pytest.raises(InputError):
        load_official("fitv2", state, config)


def test_a_missing_block_is_noticed() -> None:
    config, state, _ = golden("fitv2_lora")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(InputError, match=r"have blocks \[0, 2\]: the file is incomplete"):
        load_official("fitv2", state, config)
