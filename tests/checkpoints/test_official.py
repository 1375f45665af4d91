"""Published weights: names, configs, inference of the published sizes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import belvedere
from belvedere.checkpoints.official import dimr_config, dimr_names, load_official
from belvedere.errors import InputError
from belvedere.generation.dimr import DiMR

GOLDEN = Path(__file__).parents[1] / "golden" / "dimr_2r_tdrmsn"


def golden() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    description = json.loads(GOLDEN.with_suffix(".json").read_text())
    tensors = load_file(GOLDEN.with_suffix(".safetensors"))
    state = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    return description["config"], state, tensors


def official_keys(dim: int, depth: int, fine_depth: int) -> dict[str, Tensor]:
    """The published checkpoint's key list (specification, section 6), as empty tensors without memory."""

    def parameter(prefix: str, size: int) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}.{part}": (size,) for part in ("param0", "param1", "nodecay_weight", "nodecay_bias")}

    def norm(prefix: str, size: int) -> dict[str, tuple[int, ...]]:
        return parameter(f"{prefix}.weight", size) | parameter(f"{prefix}.bias", size)

    def linear(prefix: str, o: int, *i: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}.weight": (o, *i)} | ({f"{prefix}.bias": (o,)} if bias else {})

    shapes: dict[str, tuple[int, ...]] = {}
    low, high = "stages.0", "stages.1"
    for stage, c, blocks, patch, cells in ((low, dim, depth, 2, 256), (high, dim // 2, fine_depth, 1, 1024)):
        shapes |= linear(f"{stage}.input_layer.1", c, 4, patch, patch)
        shapes |= {f"{stage}.input_layer.3.position_embeddings.weight": (cells, c)}
        for i in range(blocks):
            block = f"{stage}.blocks.{i}"
            if stage == low:
                shapes |= parameter(f"{block}.block1.norm.scale", c)
                shapes |= linear(f"{block}.block1.query_key_value", 3 * c, c, bias=False)
                shapes |= linear(f"{block}.block1.dense", c, c)
            else:
                shapes |= linear(f"{block}.block1.1", c, 1, 7, 7)
            shapes |= parameter(f"{block}.block2.norm.scale", c)
            shapes |= linear(f"{block}.block2.w0", 2 * c, c) | linear(f"{block}.block2.w1", 2 * c, c)
            shapes |= linear(f"{block}.block2.w2", c, 2 * c)
        for i in range(blocks // 2):
            shapes |= linear(f"{stage}.skip_denses.{i}", c, 2 * c)
        shapes |= norm(f"{stage}.output_layer.0", c) | linear(f"{stage}.output_layer.2", 4, c, 3, 3)
    shapes |= {f"{low}.class_embeds.weight": (1001, dim)}
    shapes |= norm(f"{high}.upsample.0", dim * (depth + 1)) | norm(f"{high}.upsample.2", dim // 2)
    shapes |= linear(f"{high}.upsample.1.kernel", 2 * dim, dim * (depth + 1))
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(("dim", "depth", "fine_depth", "tensors"), [(960, 39, 21, 1018), (1152, 57, 29, 1446)])
def test_published_files_fit_by_name_and_shape(dim: int, depth: int, fine_depth: int, tensors: int) -> None:
    published = official_keys(dim, depth, fine_depth)
    assert len(published) == tensors
    model = load_official("dimr", published)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: tensor.shape for name, tensor in dimr_names(published).items()
    }


def test_importing_copies_every_number() -> None:
    config, state, _ = golden()
    model = load_official("dimr", state, config)
    assert sum(p.numel() for p in model.parameters()) == sum(tensor.numel() for tensor in state.values())
    total = sum(tensor.double().sum() for tensor in state.values())
    assert torch.allclose(sum(p.double().sum() for p in model.parameters()), total)
    before = state["stages.0.input_layer.1.bias"].clone()
    with torch.no_grad():
        model.stages[0].embed.bias.add_(1)
    assert torch.equal(state["stages.0.input_layer.1.bias"], before)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_both_kinds_give_the_golden_output(tmp_path: Path, suffix: str) -> None:
    config, state, tensors = golden()
    path = tmp_path / f"nnet_ema.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    model = belvedere.load_official("dimr", path, config)
    case = {name: tensors[f"smaller.{name}"] for name in ("x", "log_snr", "y", "out1")}
    with torch.no_grad():
        assert torch.allclose(model(case["x"], case["log_snr"], case["y"])[-1], case["out1"], atol=2e-5, rtol=1e-4)


def test_imported_network_saves_and_loads(tmp_path: Path) -> None:
    config, state, tensors = golden()
    model = load_official("dimr", state, config)
    model.save_pretrained(tmp_path)
    inputs = tensors["smaller.x"], tensors["smaller.log_snr"], tensors["smaller.y"]
    assert torch.equal(DiMR.from_pretrained(tmp_path)(*inputs)[-1], model(*inputs)[-1])


def test_differences_are_listed() -> None:
    config, state, _ = golden()
    del state["stages.0.blocks.0.block1.dense.bias"]
    state["stages.1.upsample.2.bias.param0"] = torch.zeros(3)
    state["surprise"] = torch.zeros(1)
    with pytest.raises(InputError) as error:
        load_official("dimr", state, config)
    message = str(error.value)
    assert "3 differences" in message and "missing stages.0.blocks.0.attention.out.bias" in message
    assert "unexpected surprise" in message and "stages.1.upsample.out_norm.bias.param0 is (3,), not (16,)" in message


def test_half_of_a_gate_is_not_enough() -> None:
    config, state, _ = golden()
    del state["stages.0.blocks.0.block2.w1.bias"]
    with pytest.raises(InputError, match="not its w1 half"):
        load_official("dimr", state, config)


def test_weights_of_no_published_size_ask_for_their_config() -> None:
    _, state, _ = golden()
    with pytest.raises(InputError, match="pass config="):
        load_official("dimr", state)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_no_fault_of_the_weights(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any) -> Tensor:
        raise error

    config, state, _ = golden()
    monkeypatch.setattr(torch, "cat", full)
    with pytest.raises(type(error)) as raised:
        load_official("dimr", state, config)
    assert raised.value is error


def test_unknown_system() -> None:
    with pytest.raises(InputError, match="no importer for 'gan'"):
        load_official("gan", {})


@pytest.mark.parametrize(
    ("system", "config", "name", "shape"),
    [
        ("dimr", None, "stages.0.class_embeds.weight", (1001,)),
        ("fitv2", None, "x_embedder.proj.weight", ()),
        ("segpic", None, "analysis1.0.conv.weight", ()),
        ("segpic", None, "dyn_encoder.k_sp_gen.0.weight", (3, 1, 1, 1)),
        ("nvist", {"near": 0.1, "far": 2.0}, "encoder.pos_embed", (3,)),
    ],
)
def test_one_tensor_of_another_form_is_one_line(
    system: str, config: dict[str, float] | None, name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"these are not|not published") as error:
        load_official(system, {name: torch.zeros(shape)}, config)
    assert "\n" not in str(error.value)


def test_halves_that_do_not_go_together_are_one_line() -> None:
    config, state, _ = golden()
    for shapes in (((64, 3), (64, 4)), ((), ())):
        halves = {f"stages.0.blocks.0.block2.w{i}.weight": torch.zeros(shape) for i, shape in enumerate(shapes)}
        with pytest.raises(InputError, match=r"of different shapes|these are not dimr weights of this form"):
            load_official("dimr", state | halves, config)
    halves = {f"blocks.0.mlp.fc1_{half}.weight": torch.zeros(()) for half in "gx"}
    with pytest.raises(InputError, match="these are not fitv2 weights of this form"):
        load_official("fitv2", {"x_embedder.proj.weight": torch.zeros(1)} | halves, "XL/2")


SHAPES = st.lists(st.integers(0, 40), max_size=5).map(tuple)
KINDS = st.sampled_from([torch.float32, torch.int8, torch.int64, torch.bool, torch.complex64])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_tensor_of_any_other_shape_or_kind_is_one_line(data: st.DataObject) -> None:
    config, state, _ = golden()
    name = data.draw(st.sampled_from(sorted(state)))
    shape, kind = data.draw(SHAPES | st.just(tuple(state[name].shape))), data.draw(KINDS)
    state[name] = torch.zeros(shape, dtype=kind)
    if (shape, kind) == (golden()[1][name].shape, torch.float32):
        return
    with pytest.raises(InputError) as error:
        load_official("dimr", state, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_weights_that_are_no_floats_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    config, state, _ = golden()
    save_file({name: tensor.to(kind) for name, tensor in state.items()}, tmp_path / "whole.safetensors")
    with pytest.raises(InputError, match=rf"is of {kind}, not torch.float32"):
        load_official("dimr", tmp_path / "whole.safetensors", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wings": 2}, "unknown official DiMR field 'wings'"),
        ({"stage_configs": [{"block_type": "Mamba"}]}, "block_type 'Mamba'"),
        ({"stage_configs": [{"dropout_prob": 0.1}]}, "dropout_prob 0.1"),
        ({"stage_configs": [{"engine": 1}]}, "unknown official stage field 'engine'"),
    ],
)
def test_unknown_official_fields(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dimr_config(change)
