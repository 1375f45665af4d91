"""FiTv2: published sizes, packed and padded forms, images that do not see each other, every choice, the loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from belvedere.data.ragged import pack_images
from belvedere.errors import InputError
from belvedere.generation.extrapolation import grid_rotations
from belvedere.generation.fitv2 import FiTv2, denoising_loss, loss, parameter_groups
from belvedere.generation.fitv2_config import CHOICES, VARIANTS
from belvedere.seeds import BatchRng

REFINED = {"refine_depth": 2, "refine_dim": 8}
SIZES = [(4, 4), (3, 5), (1, 1), (1, 6), (4, 4), (4, 4)]
LENGTHS = [height * width for height, width in SIZES]


def tiny(**changes: Any) -> FiTv2:
    """A network of two blocks with random weights, none of them zero; trained on 4 x 4 patches."""
    torch.manual_seed(0)
    fields = {"dim": 32, "depth": 2, "heads": 2, "num_classes": 5, "adaln_rank": 8, "trained_side": 4}
    model = FiTv2(**(fields | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def inputs(lengths: list[int] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """Packed tokens, and a time and a class for each image."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(lengths), 16, generator=generator)
    return x, torch.rand(len(lengths), generator=generator), torch.arange(len(lengths)) % 4


def padded(x: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """The images of a packed batch, one a row: tokens with noise for padding, positions and mask."""
    longest = max(height * width for height, width in sizes)
    tokens = torch.randn(len(sizes), longest, x.shape[-1], generator=torch.Generator().manual_seed(2))
    grid = torch.zeros(len(sizes), 2, longest, dtype=torch.int64)
    mask = torch.zeros(len(sizes), longest, dtype=torch.uint8)
    for i, part in enumerate(x.split([height * width for height, width in sizes])):
        place = torch.arange(len(part))
        tokens[i, : len(part)], mask[i, : len(part)] = part, 1
        grid[i, :, : len(part)] = torch.stack((place % sizes[i][1], place // sizes[i][1]))
    return tokens, grid, mask


# Published sizes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("XL/2", 671_045_776),
        ("HR-XL/2", 671_045_776),
        ("3B/2", 2_971_928_080),
        ("HR-3B/2", 2_971_928_080),
        ("v1-XL/2", 823_599_392),
        ("B/2", 128_149_072),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = FiTv2.from_variant(name)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", ["S/2", "toybox"])
def test_small_variants_predict_a_token_for_each(name: str) -> None:
    with torch.device("meta"):
        model = FiTv2.from_variant(name)
    c = model.config.channels * model.config.patch**2
    x, t, y = torch.empty(6, c, device="meta"), torch.empty(1, device="meta"), torch.zeros(1, device="meta").long()
    assert model(x, t, y, sizes=[(2, 3)]).shape == (6, c)


def test_high_resolution_variants_stretch_their_positions() -> None:
    assert {name: fields.get("extrapolation", "none") for name, fields in VARIANTS.items() if "XL" in name} == {
        "XL/2": "none",
        "HR-XL/2": "vision-ntk",
        "v1-XL/2": "none",
    }


def test_a_fresh_network_predicts_zero_through_blocks_that_change_nothing() -> None:
    model = FiTv2(dim=32, depth=2, heads=2, num_classes=5, adaln_rank=8)
    x, t, y = inputs()
    layout = model.layout(SIZES, "none", "cpu")
    rows = model.modulate(t, y)
    assert torch.equal(model.blocks[0](model.embed(x), rows[:, : 6 * 32], layout), model.embed(x))
    assert torch.equal(model(x, t, y, sizes=SIZES), torch.zeros(sum(LENGTHS), 16))


@pytest.mark.parametrize(
    ("change", "name", "parts"),
    [
        ({}, "embed", 1),
        ({}, "blocks.1.attention.qkv", 1),  # one officially, too
        ({}, "blocks.1.mlp.project_in", 2),
        ({"mlp": "swiglu_large"}, "blocks.0.mlp.project_in", 2),
        ({"mlp": "gelu"}, "blocks.0.mlp.project_in", 1),
        ({}, "modulation.down", 3),
        ({"adaln": "swiglu"}, "modulation.down", 6),
        ({"adaln": "swiglu"}, "modulation.head_down", 2),
    ],
)
def test_every_published_map_begins_with_the_deviation_of_its_own_size(
    change: dict[str, Any], name: str, parts: int
) -> None:
    """Xavier's, also of the maps that lie behind one another in a fused one."""
    torch.manual_seed(0)
    model = FiTv2(**({"dim": 64, "depth": 3, "heads": 4, "num_classes": 5, "adaln_rank": 16} | change))
    for part in model.get_submodule(name).weight.detach().chunk(parts):
        assert part.std().item() == pytest.approx((2 / sum(part.shape)) ** 0.5, rel=0.06)
        assert part.abs().max() <= (6 / sum(part.shape)) ** 0.5


# Packed, one by one, padded


@pytest.mark.parametrize(
    "change", [{}, {"extrapolation": "vision-ntk"}, {"extrapolation": "yarn"}, {"rotate_v": True}, REFINED], ids=str
)
def test_packed_is_one_by_one_is_padded(change: dict[str, Any]) -> None:
    model = tiny(**change, trained_side=3)
    x, t, y = inputs()
    packed = model(x, t, y, sizes=SIZES)
    parts = zip(x.split(LENGTHS), t.split(1), y.split(1), SIZES, strict=True)
    alone = [model(part, t, y, sizes=[size]) for part, t, y, size in parts]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)
    tokens, grid, mask = padded(x, SIZES)
    out = model(tokens, t, y, grid, mask)
    torch.testing.assert_close(out[mask > 0], packed, atol=1e-5, rtol=1e-5)
    assert out[mask == 0].abs().max() == 0


@pytest.mark.parametrize("change", [{}, REFINED], ids=str)
def test_images_of_one_row_are_told_apart_wherever_their_tokens_stand(change: dict[str, Any]) -> None:
    model = tiny(**change)
    x, t, y = inputs([6, 4])
    places = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    _, grid, _ = padded(x, [(2, 3), (2, 2)])
    positions = torch.cat((grid[0], grid[1, :, :4]), 1)
    mask = torch.tensor([1] * 6 + [2] * 4)
    t, y = t[:1].expand(2), y[:1].expand(2)
    mixed = model(x[places][None], t[:1], y[:1], positions[:, places][None], mask[places][None])[0]
    want = model(x, t, y, sizes=[(2, 3), (2, 2)])
    torch.testing.assert_close(mixed, want[places], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{}, REFINED], ids=str)
@pytest.mark.parametrize("image", range(len(SIZES)))
def test_an_image_sees_nothing_of_the_others(image: int, change: dict[str, Any]) -> None:
    model = tiny(**change)
    x, t, y = inputs()
    own = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(LENGTHS)) == image
    mine = torch.arange(len(SIZES)) == image
    others = torch.where(own[:, None], x, 5 * x.flip(0)), torch.where(mine, t, 1 - t), torch.where(mine, y, 4 - y)
    first, second = model(x, t, y, sizes=SIZES), model(*others, sizes=SIZES)
    assert torch.equal(first[own], second[own])
    assert not torch.isclose(first[~own], second[~own]).any(-1).all()


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


@pytest.mark.parametrize("sizes", [[(5, 5)] * 40, [(32, 32)], [(1, n) for n in range(10, 50)]])
def test_no_matrix_of_tokens_by_tokens_is_made(sizes: list[tuple[int, int]]) -> None:
    model, n = tiny(), sum(height * width for height, width in sizes)
    x, t, y = inputs([height * width for height, width in sizes])
    with Largest() as largest:
        model(x, t, y, sizes=sizes).sum().backward()
    assert n * model.blocks[0].mlp.project_in.out_features <= largest.elements < n * n / 4


class Made(TorchDispatchMode):
    """Counts the numbers that operations make, but for what only puts the images' parts behind one another."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if func is not torch.ops.aten.cat.default:
            fresh = (x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point())
            self.elements += sum(x.numel() for x in fresh if x.untyped_storage().data_ptr() not in given)
        return out


@pytest.mark.parametrize("change", [{}, {"rotate_v": True, "q_norm": "w_rmsnorm"}], ids=str)
def test_no_operation_of_a_block_touches_padding(change: dict[str, Any]) -> None:
    """83 tokens in lengths of 1 to 61, which padded would be 305: no tensor has more rows, the products do the work of
    83 rows, and all operations together make as many numbers as they make for the images one by one."""
    sizes = [(1, 1), (1, 61), (2, 3), (3, 3), (3, 2)]
    lengths = [height * width for height, width in sizes]
    model, n = tiny(**change), sum(lengths)
    block, (x, t, y) = model.blocks[0], inputs(lengths)

    def run(x: Tensor, rows: Tensor, sizes: list[tuple[int, int]]) -> int:
        layout = model.layout(sizes, "none", "cpu")
        with Made() as made:
            block(x, rows, layout)
        return made.elements

    with torch.no_grad():
        x, rows = model.embed(x), model.modulate(t, y)[:, : 6 * model.config.dim]
        alone = zip(x.split(lengths), rows.split(1), sizes, strict=True)
        assert run(x, rows, sizes) == sum(run(part, row, [size]) for part, row, size in alone)
        with Largest() as largest, FlopCounterMode(display=False) as work:
            block(x, rows, model.layout(sizes, "none", "cpu"))
    layers = [layer for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
    assert largest.elements == n * max(layer.out_features for layer in layers)
    assert work.get_total_flops() == 2 * n * sum(layer.weight.numel() for layer in layers)


def test_a_layout_without_memory_still_tells_where_images_begin() -> None:
    layout = tiny(depth=1).layout(SIZES, "none", "meta")
    assert [x.device.type for x in layout[1:]] == ["cpu", "meta", "meta", "meta"]


def test_modulation_rows_stand_for_times_and_classes() -> None:
    model = tiny()
    x, t, y = inputs()
    assert torch.equal(model(x, modulation=model.modulate(t, y), sizes=SIZES), model(x, t, y, sizes=SIZES))


# Every choice


@pytest.mark.parametrize(
    "change",
    [
        *({field: name} for field, names in CHOICES.items() for name in names),
        {"rotate_v": True},
        {"learn_sigma": True},
        REFINED,
    ],
    ids=str,
)
def test_every_choice_trains(change: dict[str, Any]) -> None:
    model = tiny(**change)
    x, t, y = inputs()
    model(x, t, y, sizes=SIZES).square().mean().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert dead == []


def test_rotated_values_know_their_position() -> None:
    x, t, y = inputs([4])
    plain, turned = (tiny(rotate_v=rotate)(x, t, y, sizes=[(2, 2)]) for rotate in (False, True))
    assert (plain - turned).abs().max() > 1e-3


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    x, t, y = inputs()
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(x, t, y, sizes=SIZES).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_version_one_has_channels_first_and_a_sigma() -> None:
    v1 = {"adaln": "normal", "mlp": "swiglu_large", "learn_sigma": True}
    x, t, y = inputs()
    tokens, grid, mask = padded(x, SIZES)
    last = tiny(**v1)(tokens, t, y, grid, mask)
    first = tiny(**v1, channels_first=True)(tokens.transpose(1, 2), t, y, grid, mask)
    assert last.shape == (6, 16, 32)
    assert torch.equal(first, last.transpose(1, 2))


def test_time_shift_moves_times_towards_data_and_no_further() -> None:
    _, t, y = inputs()
    torch.testing.assert_close(tiny(time_shift=3.0).modulate(t, y), tiny().modulate(3 * t / (1 + 2 * t), y))
    assert torch.equal(tiny().modulate(t + 1, y), tiny().modulate(torch.ones(6), y))


def test_pure_bf16_stays_close() -> None:
    model = tiny()
    x, t, y = inputs()
    want = model(x, t, y, sizes=SIZES)
    got = model.to(torch.bfloat16)(x.bfloat16(), t, y, sizes=SIZES)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()


def test_saves_and_loads(tmp_path: Path) -> None:
    model = tiny(adaln="swiglu", q_norm="w_rmsnorm")
    model.save_pretrained(tmp_path)
    x, t, y = inputs()
    assert torch.equal(FiTv2.from_pretrained(tmp_path)(x, t, y, sizes=SIZES), model(x, t, y, sizes=SIZES))


# Other forms of the program


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, REFINED], ids=("published", "refined"))
def test_compiles_to_one_graph(change: dict[str, int]) -> None:
    model = tiny(depth=1, **change)
    x, t, y = inputs()
    rows, layout = model.modulate(t, y).detach(), model.layout(SIZES, "none", "cpu")
    torch.compiler.reset()
    compiled = torch.compile(model.run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, rows, layout), model.run(x, rows, layout), atol=1e-5, rtol=1e-5)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x, t, y, sizes=SIZES), model(x, t, y, sizes=SIZES), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("change", [{}, REFINED], ids=("published", "refined"))
def test_pictures_of_one_bucket_are_compiled_once(change: dict[str, int]) -> None:
    """Of other sizes, but together as many tokens and as many pictures."""
    model = tiny(depth=1, **change)
    _, t, y = inputs()
    torch.compiler.reset()
    compiled = torch.compile(model.run, fullgraph=True)
    for again, sizes in enumerate(([(4, 4), (2, 3), (1, 10)], [(1, 1), (5, 6), (1, 1)], [(2, 8), (8, 1), (4, 2)])):
        x, rows = torch.randn(32, 16), model.modulate(t[:3], y[:3])
        layout = model.layout(sizes, "none", "cpu")
        with torch.compiler.set_stance("fail_on_recompile" if again else "default"):
            got = compiled(x, rows, layout)
        torch.testing.assert_close(got, model.run(x, rows, layout), atol=1e-5, rtol=1e-5)


def test_exports_and_goes_on() -> None:
    model, sizes = tiny(depth=1), [(3, 2), (2, 4)]
    x, t, y = inputs([6, 8])
    grid_rotations.cache_clear()
    try:
        program = torch.export.export(model, (x, t, y), {"sizes": sizes})
        torch.testing.assert_close(program.module()(x, t, y, sizes=sizes), model(x, t, y, sizes=sizes))
    finally:
        grid_rotations.cache_clear()


# The loss


def images(indices: list[int], channels: int = 4) -> dict[str, Tensor]:
    """A ragged batch of pictures, each a function of its index."""
    made = []
    for i in indices:
        height, width = 2 * SIZES[i % 6][0], 2 * SIZES[i % 6][1]
        made.append(torch.randn(channels, height, width, generator=torch.Generator().manual_seed(i)).tanh())
    flat, size = pack_images(made)
    return {"image": flat, "size": size, "label": torch.tensor(indices) % 4}


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_loss_by_hand(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(prediction=prediction)
    clean, t, y = inputs()
    noise = clean.flip(0)
    t[0] = 0.99
    target = clean - noise if prediction == "velocity" else clean
    seen = []
    for error, off in ((0.0, 0.0), (4.0, 2.0)):
        monkeypatch.setattr(model, "run", lambda x, rows, layout, off=off: seen.append(x) or target + off)
        got = denoising_loss(model, clean, noise, t, y, SIZES)
        weight = 1 if prediction == "velocity" else 1 / (1 - t).clamp(min=0.1) ** 2
        torch.testing.assert_close(got, error * weight * torch.ones(6))
    share = t.repeat_interleave(torch.tensor(LENGTHS))[:, None]
    torch.testing.assert_close(seen[0], share * clean + (1 - share) * noise)


def test_loss_of_an_image_has_its_own_time_and_class() -> None:
    model = tiny()
    x, t, y = inputs()
    parts = zip(x.split(LENGTHS), t.split(1), y.split(1), SIZES, strict=True)
    want = [denoising_loss(model, part, -part, t, y, [size]) for part, t, y, size in parts]
    torch.testing.assert_close(denoising_loss(model, x, -x, t, y, SIZES), torch.cat(want), rtol=1e-5, atol=1e-6)


def test_sigma_has_no_part_in_the_loss() -> None:
    model = tiny(learn_sigma=True)
    x, t, y = inputs()
    denoising_loss(model, x, -x, t, y, SIZES).sum().backward()
    assert model.head.weight.grad[:16].any() and not model.head.weight.grad[16:].any()


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_loss_falls(prediction: str) -> None:
    model = tiny(prediction=prediction).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=3e-3)
    values = []
    for _ in range(40):
        value, logs = loss(model, images([0, 1, 2, 3]), BatchRng(0, 0, range(4)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(logs["loss"])
    assert values[-1] < 0.6 * values[0]


def test_loss_does_not_depend_on_the_order_or_the_split_of_the_batch() -> None:
    model = tiny()

    def of(indices: list[int]) -> Tensor:
        return loss(model, images(indices), BatchRng(0, 3, indices), class_dropout=0.5)[0]

    whole = of([0, 1, 2, 3])
    torch.testing.assert_close(of([2, 0, 3, 1]), whole)
    torch.testing.assert_close((of([3, 0]) + of([1, 2])) / 2, whole)
    torch.testing.assert_close(torch.stack([of([i]) for i in range(4)]).mean(), whole)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_the_rate_and_else_kept(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny(), []
    modulate = model.modulate
    monkeypatch.setattr(model, "modulate", lambda t, y: seen.append(y) or modulate(t, y))
    batch = images([6 * i + 2 for i in range(500)])  # of one token each
    loss(model, batch, BatchRng(0, 0, range(500)), class_dropout=rate)
    dropped = seen[0] == model.null_class
    assert abs(dropped.float().mean().item() - rate) < 0.05 * (rate not in (0, 1)) + 1e-6
    assert torch.equal(seen[0][~dropped], batch["label"][~dropped])


def test_loss_logs_its_tokens() -> None:
    assert loss(tiny(), images([0, 1]), BatchRng(0, 0, [0, 1]))[1]["tokens"] == 16 + 15


def test_frozen_parameters_are_not_trained() -> None:
    model = tiny()
    model.class_embed.requires_grad_(False)
    (group,) = parameter_groups(model, 0.01)
    assert group["weight_decay"] == 0.01
    assert len(group["params"]) == len(list(model.parameters())) - 1


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp": "relu"}, "mlp 'relu': choose from swiglu"),
        ({"norm": "rmsnorm"}, "norm 'rmsnorm'"),
        ({"q_norm": "l2"}, "q_norm 'l2'"),
        ({"k_norm": None}, "k_norm None"),
        ({"adaln": "single"}, "adaln 'single'"),
        ({"prediction": "epsilon"}, "prediction 'epsilon'"),
        ({"extrapolation": "magic"}, "unknown extrapolation 'magic'"),
        ({"depth": 0}, "depth 0: must be an integer from 1 to 1000"),
        ({"dim": 1e3}, "dim 1000.0: must be an integer"),
        ({"heads": 3}, "dim 32 over 3 heads"),
        ({"heads": 16}, "must divide by 4"),
        ({"num_classes": 1}, "counts the null class"),
        ({"adaln_rank": 0}, "adaln_rank 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be above 0"),
        ({"trained_side": 1}, "trained_side at least 2"),
        ({"time_shift": 0.0}, "time_shift 0.0"),
    ],
)
def test_bad_configs_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**change)


def test_unknown_variants_list_the_known_ones() -> None:
    with pytest.raises(InputError, match="no FiTv2 variant 'XXL': choose from B/2, XL/2"):
        FiTv2.from_variant("XXL")


def test_calls_that_do_not_fit() -> None:
    model = tiny()
    x, t, y = inputs()
    tokens, grid, mask = padded(x, SIZES)
    with pytest.raises(InputError, match="takes packed tokens"):
        model(x, t, y)
    with pytest.raises(InputError, match="takes packed tokens"):
        model(tokens, t, y, grid)
    with pytest.raises(InputError, match=r"have 70 tokens, x has 69"):
        model(x[1:], t, y, sizes=SIZES)
    with pytest.raises(InputError, match="5 times or labels for 6 images"):
        model(x, t[1:], y[1:], sizes=SIZES)
    with pytest.raises(InputError, match="5 times or labels for 6 images"):
        model(tokens, t[1:], y[1:], grid, mask)
    with pytest.raises(InputError, match="needs t and y, or modulation"):
        model(x, sizes=SIZES)
    with pytest.raises(InputError, match="2 extrapolations for 6 images"):
        model(x, t, y, sizes=SIZES, extrapolation=["none", "pi"])
    with pytest.raises(InputError, match="1 sizes for 6 images"):
        model(tokens, t, y, grid, mask, sizes=[(4, 4)])
