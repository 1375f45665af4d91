"""SegPIC's published weights: every name, doubled blocks, empty buffers, files, and what is refused. Golden: parity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_segpic import infer_segpic, segpic_config, segpic_names
from belvedere.checkpoints.tensors import unwrap
from belvedere.compression.segpic_config import VARIANTS
from belvedere.errors import InputError
from tests.official_segpic import buffers, doubled, golden_weights, parameters


@pytest.fixture(scope="module")
def eighth() -> dict[str, Tensor]:
    return golden_weights(8, "segpic-a")


def test_the_published_file_fits_by_name_and_shape() -> None:
    published = {name: torch.empty(shape, device="meta") for name, shape in (parameters() | buffers()).items()}
    published = doubled(published)
    assert len(published) == 919 and sum(tensor.numel() for tensor in published.values()) == 92_050_130
    model = load_official("segpic", published)
    assert sum(p.numel() for p in model.parameters()) == 83_503_971
    assert {field: model.config[field] for field in VARIANTS["SegPIC"]} == VARIANTS["SegPIC"]


@pytest.mark.parametrize("divisor", [1, 4, 8])
def test_widths_are_read_from_shapes(divisor: int) -> None:
    shapes = {name: torch.empty(shape, device="meta") for name, shape in parameters(divisor).items()}
    want = VARIANTS["SegPIC" if divisor == 1 else f"SegPIC/{divisor}"]
    assert infer_segpic(shapes) == want | {"slices": 10, "support": 5, "heads": 8, "windows": [8, 4]}
    copies = {name: tensor for name, tensor in doubled(shapes).items() if not name.startswith("basic_")}
    assert infer_segpic(copies) == infer_segpic(shapes)


def test_importing_copies_every_number(eighth: dict[str, Tensor]) -> None:
    model = load_official("segpic", doubled(eighth))
    total = sum(tensor.double().sum() for tensor in eighth.values())
    assert torch.allclose(sum(p.double().sum() for p in model.parameters()), total)
    with torch.no_grad():
        model.encoder_rat.from_features.weight.add_(1)
    assert not torch.equal(eighth["dyn_encoder.k_sp_gen.0.weight"][:, :24], model.encoder_rat.from_features.weight)


def test_a_training_checkpoint_gives_the_same_network(eighth: dict[str, Tensor]) -> None:
    empty = {name: torch.zeros(shape) for name, shape in buffers().items()}
    file = {f"module.{name}": tensor for name, tensor in (doubled(eighth) | empty).items()}
    saved = {"epoch": 399, "loss": torch.ones(()), "state_dict": file, "optimizer": {"state": {}}}
    model = load_official("segpic", unwrap(saved, "segpic_0018_best.pth"))
    want = load_official("segpic", eighth)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), want.state_dict().values(), strict=True))


def test_older_names_of_a_bottleneck(eighth: dict[str, Tensor]) -> None:
    older = {
        name.replace("._matrix", "._matrices.").replace("._bias", "._biases.").replace("._factor", "._factors."): tensor
        for name, tensor in eighth.items()
    }
    assert "entropy_bottleneck._matrices.0" in older and segpic_names(older).keys() == segpic_names(eighth).keys()


def test_doubled_blocks_must_be_equal(eighth: dict[str, Tensor]) -> None:
    file = doubled(eighth)
    file["g_s0.2.conv_groups.0.bias"] = file["g_s0.2.conv_groups.0.bias"] + 1
    with pytest.raises(InputError, match=r"g_s0.2.conv_groups.0.bias twice, with different numbers"):
        load_official("segpic", file)


def test_differences_are_listed(eighth: dict[str, Tensor]) -> None:
    file = eighth | {"surprise": torch.zeros(1), "h_a.0.bias": torch.zeros(3)}
    del file["lrp_transforms.7.4.bias"]
    with pytest.raises(InputError) as error:
        load_official("segpic", file)
    message = str(error.value)
    assert "3 differences" in message and "unexpected surprise" in message
    assert (
        "missing channel_context.residuals.7.4.bias" in message
        and "hyper_analysis.0.bias is (3,), not (40,)" in message
    )


def test_other_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"these are not SegPIC weights: .* is missing"):
        load_official("segpic", {"stages.0.weight": torch.zeros(1)})


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_tensors_of_other_shapes_are_one_line(eighth: dict[str, Tensor], data: st.DataObject) -> None:
    weights = {name: tensor.to("meta") for name, tensor in eighth.items()}
    told = [
        "cc_mean_transforms.0.8.weight",
        "dyn_encoder.k_sp_gen.0.weight",
        "g_a1.2.conv_b.0.attn.relative_position_bias_table",
    ]
    for name in data.draw(st.lists(st.sampled_from(told + sorted(weights)), min_size=1, max_size=3)):
        shape = data.draw(st.lists(st.integers(0, 30), max_size=5).map(tuple))
        if shape != weights[name].shape:
            weights[name] = torch.empty(shape, device="meta")
            with pytest.raises(InputError) as error:
                load_official("segpic", weights)
            assert "\n" not in str(error.value)


def test_there_are_no_official_fields() -> None:
    with pytest.raises(InputError, match="have no config: leave it out"):
        segpic_config({"N": 192})
