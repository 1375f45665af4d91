"""DiMR: published sizes, every norm and position, time as an argument, training and compiled forms."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from belvedere.errors import InputError
from belvedere.generation.denoising import loss_weight, multiscale_targets, training_times
from belvedere.generation.dimr import DiMR, denoising_loss, loss, parameter_groups
from belvedere.generation.dimr_config import NORMS, VARIANTS, StageConfig
from belvedere.generation.schedules import Flow, ScaledLinear
from belvedere.seeds import BatchRng

TRANSFORMER = {"kind": "transformer", "dim": 32, "hidden": 48, "blocks": 3, "heads": 2, "height": 4, "width": 4}
CONVNEXT = {"kind": "convnext", "dim": 16, "hidden": 24, "blocks": 2, "kernel": 3, "height": 8, "width": 8}


def tiny(**changes: Any) -> DiMR:
    torch.manual_seed(0)
    stages = [TRANSFORMER | {"patch": 2}, CONVNEXT]
    model = DiMR(**({"channels": 4, "num_classes": 5, "stage_configs": stages} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def inputs(batch: int = 2, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, side, side, generator=generator), torch.linspace(-3, 3, batch), torch.arange(batch) % 4


@pytest.mark.parametrize(("name", "count"), [("XL/2R-256", 505_046_408), ("G/2R-256", 1_056_352_904)])
def test_published_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = DiMR.from_variant(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_three_resolutions_at_512_have_the_papers_size() -> None:
    with torch.device("meta"):
        model = DiMR.from_variant("XL/3R-512")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 525
    outputs = model(
        torch.empty(1, 4, 64, 64, device="meta"),
        torch.empty(1, device="meta"),
        torch.zeros(1, dtype=torch.long, device="meta"),
    )
    assert [o.shape[-1] for o in outputs] == [16, 32, 64]


@pytest.mark.parametrize("name", [n for n in VARIANTS if n.startswith(("S", "t"))])
def test_small_variants_predict_at_full_resolution(name: str) -> None:
    model = DiMR.from_variant(name).eval()
    side = model.sizes[-1].height * model.sizes[-1].ratio
    with torch.no_grad():
        outputs = model(
            torch.randn(1, model.config.channels, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        )
    assert outputs[-1].shape == (1, model.config.channels, side, side)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("position", ["APE", "Axial_RoPE"])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_every_norm_and_position_trains(norm: str, position: str, num_classes: int | None) -> None:
    model = tiny(norm=norm, position=position, num_classes=num_classes)
    x, log_snr, y = inputs()
    sum(o.square().mean() for o in model(x, log_snr, y if num_classes else None)).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_three_stages_and_class_everywhere() -> None:
    top = CONVNEXT | {"height": 16, "width": 16, "dim": 8}
    model = tiny(stage_configs=[TRANSFORMER | {"patch": 4}, CONVNEXT | {"patch": 2}, top], class_everywhere=True)
    x, log_snr, y = inputs(side=16)
    first, second = model(x, log_snr, y), model(x, log_snr, y + 1)
    assert [o.shape[-1] for o in first] == [4, 8, 16]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(first, second, strict=True))


def test_time_evaluated_beforehand_is_the_same() -> None:
    model = tiny()
    x, _, y = inputs()
    table = model.evaluate_time(torch.tensor([-2.0, 0.5, 3.0]))
    want = model(x, torch.full((2,), 0.5), y)[-1]
    assert torch.allclose(model(x, y=y, time=table[1:2])[-1], want, atol=1e-6)


def test_time_parameter_slides_from_clean_to_noisy() -> None:
    model = tiny()
    parameter = model.times[0]
    with torch.no_grad():
        parameter.param0.fill_(3.0)
        parameter.param1.fill_(1.0)
        parameter.nodecay_weight.fill_(7.0)
        parameter.nodecay_bias.zero_()
    # tau = log_snr / 4 = 1: sigmoid(1 * (7 + 1)) = 0.99966, so 1 + 0.99966 * 2 = 2.99933; tau = 0: the middle, 2.
    values = model.evaluate_time(torch.tensor([4.0, 0.0]))
    assert torch.allclose(values[:, 0], torch.tensor([2.99933, 2.0]), atol=1e-4)


class OfAll(TorchDispatchMode):
    """Counts the tensors of a shape that operations make."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += isinstance(out, torch.Tensor) and out.shape == self.shape
        return out


def test_gradients_of_time_dependent_parameters_are_joined_once() -> None:
    model = tiny()
    x, log_snr, y = inputs()
    time = model.evaluate_time(log_snr).detach().requires_grad_()
    value = model(x, y=y, time=time)[-1].sum()
    with OfAll(time.shape) as made:
        (gradient,) = torch.autograd.grad(value, time)
    assert made.count == 1 and len(model.times) > 10 and gradient.ne(0).any()


def test_axial_rope_with_a_class_token_leaves_it_unrotated() -> None:
    model = tiny(position="Axial_RoPE")
    rope = model.stages[0].blocks[0].attention.rope
    q = torch.randn(1, 17, 2, 16)
    turned, _ = rope(q, q, (4, 4))
    gain = (0.5 * rope.scale - 0.25 * torch.log(torch.tensor(16.0))).exp()
    plain = q * torch.rsqrt(q.square().mean(-1, keepdim=True) + 1e-6) * gain[:, None]
    assert torch.allclose(turned[:, 0], plain[:, 0], atol=1e-5)
    assert not torch.allclose(turned[:, 1], plain[:, 1], atol=1e-2)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        x, log_snr, y = inputs()
        model(x, log_snr, y)[-1].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_detached_low_resolution_gets_no_gradient_from_above() -> None:
    x, log_snr, y = inputs()
    model = tiny(detach_lowres=True)
    model(x, log_snr, y)[-1].sum().backward()
    assert model.stages[0].blocks[0].mlp.project_in.weight.grad is None


def test_pure_bf16_stays_close() -> None:
    model = tiny()
    x, log_snr, y = inputs()
    want = model(x, log_snr, y)[-1]
    got = model.to(torch.bfloat16)(x.bfloat16(), log_snr, y)[-1]
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()


@pytest.mark.slow
def test_compiles_to_one_graph_once_for_all_steps() -> None:
    model = tiny()
    x, log_snr, y = inputs()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x, log_snr, y)[-1], model(x, log_snr, y)[-1], atol=1e-5)
        with torch.compiler.set_stance("fail_on_recompile"):  # other pictures, times and classes
            assert torch.allclose(compiled(-x, log_snr / 2, 3 - y)[-1], model(-x, log_snr / 2, 3 - y)[-1], atol=1e-5)


def test_exports() -> None:
    model = tiny()
    x, log_snr, y = inputs()
    program = torch.export.export(model, (x, log_snr, y))
    assert torch.allclose(program.module()(x, log_snr, y)[-1], model(x, log_snr, y)[-1], atol=1e-5)


def test_threads_share_one_model() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = tiny()
    x, _, y = inputs()
    times = [torch.full((2,), v) for v in (-3.0, -1.0, 1.0, 3.0)] * 4
    with torch.no_grad():
        alone = [model(x, t, y)[-1] for t in times]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda t: model(x, t, y)[-1], times))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, together, strict=True))


def test_saves_and_loads(tmp_path: Any) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    again = DiMR.from_pretrained(tmp_path)
    x, log_snr, y = inputs()
    assert torch.equal(again(x, log_snr, y)[-1], model(x, log_snr, y)[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "BN"}, "norm 'BN'"),
        ({"position": "sine"}, "position 'sine'"),
        ({"stage_configs": []}, "stage_configs is empty"),
        ({"stage_configs": [["x"]]}, "must be a mapping"),
        ({"channels": -1}, "-1 channels"),
        ({"num_classes": 0}, "0 classes"),
        ({"stage_configs": [TRANSFORMER | {"wings": 2}]}, "unknown stage key 'wings'"),
        ({"stage_configs": [TRANSFORMER | {"heads": 5}]}, "not a multiple of its 5 heads"),
        ({"stage_configs": [TRANSFORMER | {"heads": 0}]}, "stage heads 0"),
        ({"stage_configs": [TRANSFORMER | {"kind": "mamba"}]}, "stage kind 'mamba'"),
        ({"stage_configs": [TRANSFORMER, CONVNEXT | {"height": 6}]}, "do not see the same image"),
        ({"stage_configs": [TRANSFORMER | {"dim": 0}]}, "stage dim 0"),
        ({"prediction": "noise"}, "prediction 'noise': choose from epsilon, velocity, sample"),
        ({"schedule": "cosine"}, "schedule 'cosine': choose from scaled_linear, flow"),
        ({"prediction": "epsilon", "schedule": "flow"}, "choose sample or velocity"),
        ({"stage_configs": [TRANSFORMER | {"patch": 2}, CONVNEXT | {"kernel": 4}]}, "stage kernel 4: must be odd"),
        ({"stage_configs": [TRANSFORMER | {"head_kernel": 2}]}, "stage head_kernel 2: must be odd"),
        ({"stage_configs": [TRANSFORMER | {"dim": 36}], "position": "Axial_RoPE"}, "dim 36 over 2 heads: Axial_RoPE"),
    ],
)
def test_bad_configs_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**change)


@pytest.mark.parametrize("shape", [(1, 4, 9, 8), (1, 4, 16, 16), (1, 4, 0, 8)])
def test_sizes_the_model_cannot_do(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiples of 2 up to 8x8"):
        tiny()(torch.zeros(shape), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_class_conditional_model_without_classes() -> None:
    with pytest.raises(InputError, match="pass y"):
        tiny()(torch.zeros(1, 4, 8, 8), torch.zeros(1))


def test_blocks_are_rounded_up_to_odd() -> None:
    depths = [StageConfig.parse(CONVNEXT | {"blocks": n}).depth for n in (20, 29, 39, 1)]
    assert depths == [21, 29, 39, 1]


def test_only_blend_parameters_escape_weight_decay() -> None:
    model = tiny()
    decayed, free = parameter_groups(model, 0.03)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.03, 0.0)
    assert len(free["params"]) == 2 * len(model.times)
    assert len(free["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def test_targets_by_hand() -> None:
    target = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None, None]
    scaled, kept = (multiscale_targets(target, [1, 2], unit_variance=unit) for unit in (True, False))
    assert scaled[0].item() == 8.0  # mean 4 of a 2 x 2 cell, times 2
    assert kept[0].item() == 4.0
    assert torch.equal(scaled[1], target)


def test_training_times_cover_the_schedule() -> None:
    rng = BatchRng(0, 0, range(4000))
    discrete = training_times(ScaledLinear(), rng)
    assert discrete.min() >= 0.001 and discrete.max() <= 1.0
    assert torch.allclose(discrete * 1000, (discrete * 1000).round(), atol=1e-3)
    assert abs(discrete.mean() - 0.5005) < 0.02
    flow = training_times(Flow(), rng)
    assert flow.min() > 0 and flow.max() < 1 and abs(torch.logit(flow).mean() - 0.4) < 0.06


def test_loss_weight_of_clean_prediction_is_bounded() -> None:
    assert loss_weight(Flow(), "sample", torch.tensor([0.01, 0.5])).tolist() == pytest.approx([100.0, 4.0])
    assert loss_weight(ScaledLinear(), "epsilon", torch.tensor([0.01])).item() == 1.0


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [(kind, "scaled_linear") for kind in ("epsilon", "velocity", "sample")]
    + [("velocity", "flow"), ("sample", "flow")],
)
def test_loss_falls_for_every_target(prediction: str, schedule: str) -> None:
    model = tiny(prediction=prediction, schedule=schedule).train()
    batch = {"image": inputs(4)[0].tanh(), "label": torch.arange(4)}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-2)
    values = []
    for _ in range(15):
        value, logs = loss(model, batch, BatchRng(0, 0, range(4)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(logs["loss"])
    assert values[-1] < 0.7 * values[0]


def test_loss_does_not_depend_on_the_batch_around_a_sample() -> None:
    model = tiny()
    images = inputs(4)[0]
    t = torch.tensor([0.2, 0.4, 0.6, 0.8])
    noise = BatchRng(0, 3, range(4)).normal("noise", images.shape[1:])
    whole = denoising_loss(model, images, noise, t, torch.arange(4))
    assert torch.equal(noise[2:], BatchRng(0, 3, [2, 3]).normal("noise", images.shape[1:]))
    half = denoising_loss(model, images[2:], noise[2:], t[2:], torch.arange(2, 4))
    assert torch.allclose(whole[2:], half, rtol=1e-5)
