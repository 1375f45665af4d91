"""The pipeline: a picture depends on its own seed alone, every solver and scheduler runs, classes are checked."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from belvedere.errors import InputError
from belvedere.generation.dimr import DiMR
from belvedere.generation.pipelines import DiMRPipeline
from tests.generation.test_dimr import CONVNEXT, TRANSFORMER, tiny

NAMES = dict(enumerate(["ant", "bee", "cat", "dog"]))
NOISE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def pipeline(**changes: Any) -> DiMRPipeline:
    flow = {"prediction": "sample", "schedule": "flow", "channels": 3}
    made = DiMRPipeline(tiny(**(flow | changes)), id2label=NAMES, default_steps=3)
    made.set_progress_bar_config(disable=True)
    return made


def generators(indices: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in indices]


def pixels(made: DiMRPipeline, indices: list[int], **options: Any) -> torch.Tensor:
    labels = [i % 4 for i in indices]
    return made(labels, generator=generators(indices), output_type="pt", **options).images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["tiny", "toybox"])
def test_a_picture_does_not_depend_on_its_neighbours(dtype: torch.dtype, variant: str) -> None:
    torch.manual_seed(0)
    made = pipeline() if variant == "tiny" else DiMRPipeline(DiMR.from_variant("toybox").eval(), id2label=NAMES)
    made.network.to(dtype)
    made.set_progress_bar_config(disable=True)
    count = made.micro_batch() + 2 if variant == "toybox" else 19
    whole = pixels(made, list(range(count)), num_inference_steps=2)
    for indices in ([1], [count - 1, 0], list(range(count - 1, -1, -1))):
        assert torch.equal(pixels(made, indices, num_inference_steps=2), whole[indices])


def test_micro_batches_follow_the_size_of_the_picture() -> None:
    assert pipeline().micro_batch() == 8  # 512 positions a call, 8 x 8 in the last stage
    stages = [TRANSFORMER | {"patch": 16}, CONVNEXT | {"height": 64, "width": 64}]
    assert pipeline(stage_configs=stages).micro_batch() == 1


@pytest.mark.parametrize("schedule", ["flow", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "velocity", "sample"])
@pytest.mark.parametrize("solver", ["multistep", "published"])
def test_every_solver_runs_on_every_kind_of_network(schedule: str, prediction: str, solver: Any) -> None:
    if schedule == "flow" and (prediction == "epsilon" or solver == "published"):
        pytest.skip("pure noise under the flow schedule holds no data to start from")
    made = pipeline(schedule=schedule, prediction=prediction)
    images = pixels(made, [0, 1], solver=solver, num_inference_steps=4)
    assert images.shape == (2, 3, 8, 8)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        ("scaled_linear", diffusers.DPMSolverMultistepScheduler(**NOISE)),
        ("scaled_linear", diffusers.DDPMScheduler(**NOISE)),
        ("scaled_linear", diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **NOISE)),
        ("flow", diffusers.FlowMatchEulerDiscreteScheduler()),
        ("flow", diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_diffusers_schedulers_swap_in(schedule: str, scheduler: Any) -> None:
    made = pipeline(schedule=schedule)
    made.register_modules(scheduler=scheduler)
    whole = pixels(made, [0, 1, 2], num_inference_steps=3)
    assert whole.isfinite().all()
    assert torch.equal(pixels(made, [2], num_inference_steps=3)[0], whole[2])


def test_diffusers_multistep_solver_agrees_with_ours() -> None:
    """Both solve one ODE with many small steps; they differ in grid only."""
    made = pipeline(schedule="scaled_linear", prediction="sample")
    ours = pixels(made, [0], num_inference_steps=100, guidance_scale=1.0)
    made.register_modules(scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="sample", **NOISE))
    theirs = pixels(made, [0], num_inference_steps=100, guidance_scale=1.0)
    assert (ours - theirs).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("schedule", "scheduler", "message"),
    [
        ("flow", diffusers.DDIMScheduler(), "DDIMScheduler is not configured for flows: use a FlowMatch"),
        ("flow", diffusers.DPMSolverMultistepScheduler(**NOISE), "is not configured for flows"),
        ("flow", diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "is not configured for flows"),
        ("scaled_linear", diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler is not conf"),
        (
            "scaled_linear",
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **NOISE),
            "is not configured for the noise of this network",
        ),
        (
            "scaled_linear",
            diffusers.DPMSolverMultistepScheduler(),
            'give it beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012 and prediction_type epsilon or ',
        ),
        ("scaled_linear", diffusers.DDIMScheduler(num_train_timesteps=500, **NOISE), "is not configured for the noise"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20],
)
def test_schedulers_of_other_networks_are_refused(schedule: str, scheduler: Any, message: str) -> None:
    made = pipeline(schedule=schedule)
    made.scheduler = scheduler
    with pytest.raises(InputError, match=message):
        made("ant")


def test_a_scheduler_refuses_no_steps() -> None:
    made = pipeline()
    made.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="num_inference_steps 0: a scheduler needs steps >= 1"):
        made("ant", num_inference_steps=0)


def autoencoder() -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
    ).eval()  # fmt: skip


def of_latents(**parts: Any) -> DiMRPipeline:
    made = DiMRPipeline(tiny(), id2label=NAMES, default_steps=2, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def test_latents_go_through_the_autoencoder() -> None:
    vae = autoencoder()
    made = of_latents(vae=vae)
    latents = made([0, 1], generator=generators([0, 1]), output_type="latent").images
    images = made([0, 1], generator=generators([0, 1]), output_type="pt").images
    want = (vae.decode(latents[:1] / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    assert images.shape == (2, 3, 16, 16)
    assert torch.allclose(images[:1], want, atol=1e-5)


def test_guidance_one_skips_the_null_half() -> None:
    made = pipeline()
    sizes: list[int] = []
    made.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    pixels(made, [0], num_inference_steps=1, guidance_scale=1.0)
    pixels(made, [0], num_inference_steps=1, guidance_scale=2.0)
    assert sizes == [made.micro_batch(), 2 * made.micro_batch()]


def test_guidance_acts_within_its_interval_alone() -> None:
    """The way from noise has four steps here, at shares of 0, 1/4, 1/2 and 3/4."""
    made = pipeline()
    rows: list[int] = []
    made.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0]) // made.micro_batch()))

    def of(*interval: float, guidance: float = 3.0) -> torch.Tensor:
        rows.clear()
        options: dict[str, Any] = {"guidance_interval": interval} if interval else {}
        return pixels(made, [0], num_inference_steps=4, guidance_scale=guidance, **options)

    whole = of()
    assert rows == [2, 2, 2, 2] and torch.equal(of(0.0, 1.0), whole)
    assert not torch.equal(of(0.2, 0.6), whole) and rows == [1, 2, 2, 1]
    of(0.25, 0.5)
    assert rows == [1, 2, 2, 1]
    assert torch.equal(of(0.9, 1.0), of(guidance=1.0)) and rows == [1, 1, 1, 1]
    with pytest.raises(InputError, match="guidance interval"):
        of(0.6, 0.2)


def test_time_dependent_parameters_are_evaluated_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = pipeline(), []
    evaluate = made.network.evaluate_time
    monkeypatch.setattr(made.network, "evaluate_time", lambda log_snr: calls.append(len(log_snr)) or evaluate(log_snr))
    pixels(made, [0], num_inference_steps=20)
    assert calls == [20]


def test_callback_sees_every_step_and_can_stop() -> None:
    made, seen = pipeline(), []

    def callback(pipe: Any, step: int, t: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, tensors["clean"].shape))
        if step == 2:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        pixels(made, [0], num_inference_steps=5, callback_on_step_end=callback)
    assert seen == [(step, (1, 3, 8, 8)) for step in range(3)]  # of the picture alone, without padding


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "multistep": ({}, {}),
    "published": ({"schedule": "scaled_linear"}, {"solver": "published"}),
    "scheduler": ({}, {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}),
}
"""What a pipeline is made with, and what it is called with or given before."""


def way(name: str) -> tuple[DiMRPipeline, dict[str, Any]]:
    """Return a pipeline and how to call it for latents of two pictures in four steps."""
    changes, options = WAYS[name]
    made, options = pipeline(**changes), dict(options)
    made.scheduler = options.pop("scheduler", None)
    return made, options | {"num_inference_steps": 4, "output_type": "latent", "generator": generators([0, 1])}


@pytest.mark.parametrize("name", WAYS)
def test_callback_is_told_the_times_that_are_reached(name: str) -> None:
    made, options = way(name)
    times: list[float] = []
    made([0, 1], **options, callback_on_step_end=lambda pipe, step, t, tensors: times.append(t))
    assert times == sorted(times, reverse=True) and times[0] < 1 and times[-1] == (0.001 if name == "published" else 0)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("returned", [True, False])
def test_a_callback_that_changes_nothing_changes_no_bit(name: str, returned: bool) -> None:
    made, options = way(name)
    want = made([0, 1], **options).images
    options |= {"generator": generators([0, 1])}
    got = made([0, 1], **options, callback_on_step_end=lambda pipe, step, t, tensors: tensors if returned else None)
    assert torch.equal(got.images, want)


@pytest.mark.parametrize("name", WAYS)
def test_what_a_callback_returns_takes_the_place_of_the_pictures(name: str) -> None:
    made, options = way(name)
    plain = made([0, 1], **options).images
    seen: list[torch.Tensor] = []

    def brighten(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        return {"latents": tensors["latents"] + torch.tensor([0.0, 1.0])[:, None, None, None]}

    options |= {"generator": generators([0, 1])}
    got = made([0, 1], **options, callback_on_step_end=brighten).images
    assert torch.equal(got[1], seen[-1][1] + 1) and not torch.equal(got[1], plain[1] + 1)
    assert torch.equal(got[0], plain[0])


def test_latents_of_another_shape_are_refused() -> None:
    made = pipeline()
    for latents in (torch.zeros(1, 3, 4, 4), torch.zeros(8, 3, 8, 8)):
        with pytest.raises(InputError, match="callback_on_step_end returned latents of"):
            made("ant", callback_on_step_end=lambda *_, latents=latents: {"latents": latents})


def test_offloading_is_of_the_autoencoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, sent = of_latents(vae=autoencoder()), list[str]()
    want = pixels(made, [0, 1])
    made.enable_model_cpu_offload(device="cpu")
    assert not hasattr(made.network, "_hf_hook") and hasattr(made.vae, "_hf_hook")
    (hook,) = made._all_hooks
    monkeypatch.setattr(hook, "offload", lambda: sent.append("back"))
    assert torch.equal(pixels(made, [0, 1]), want) and sent == ["back"]
    made.enable_sequential_cpu_offload(device="cpu")  # which accelerate cannot run on a CPU
    assert not hasattr(made.network, "_hf_hook") and made.vae.device.type == "meta"


def test_saves_and_loads_as_a_diffusers_pipeline(tmp_path: Path) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, DiMRPipeline)
    again.set_progress_bar_config(disable=True)
    assert again.labels == {name: i for i, name in NAMES.items()}
    assert torch.equal(pixels(again, [3]), pixels(made, [3]))


def test_parts_that_are_given_later_are_saved_too(tmp_path: Path) -> None:
    made = of_latents()
    made.vae, made.scheduler = autoencoder(), diffusers.DDIMScheduler(**NOISE)
    made.save_pretrained(tmp_path / "both")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "both")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is diffusers.DDIMScheduler
    assert torch.equal(pixels(again, [0]), pixels(made, [0]))
    made.vae = None
    made.save_pretrained(tmp_path / "one")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "one")
    assert again.vae is None and type(again.scheduler) is diffusers.DDIMScheduler


def test_output_forms() -> None:
    made = pipeline()
    assert made("cat").images[0].size == (8, 8)
    assert made(["cat", 1], output_type="np").images.shape == (2, 8, 8, 3)
    assert made("cat", return_dict=False)[0][0].mode == "RGB"


@pytest.mark.parametrize(
    ("labels", "message"),
    [("unicorn", "unknown class 'unicorn': this model knows ant"), ([4], "unknown class 4"), (-1, "unknown class -1")],
)
def test_unknown_classes(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline()(labels)


def test_wrong_number_of_generators() -> None:
    with pytest.raises(InputError, match="2 generators for 1 images"):
        pipeline()(["ant"], generator=generators([0, 1]))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("solver", ["multistep", "published"])
def test_a_step_is_one_evaluation_by_either_solver(solver: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = pipeline(schedule="scaled_linear", prediction="epsilon"), []
    forward = made.network.forward
    monkeypatch.setattr(made.network, "forward", lambda *x, **y: calls.append(1) or forward(*x, **y))
    made(["ant"], solver=solver, num_inference_steps=steps)
    assert len(calls) == made.evaluations(solver, steps) == steps


@pytest.mark.parametrize("solver", ["magic", "published"])
def test_solvers_that_do_not_fit(solver: Any) -> None:
    with pytest.raises(InputError, match=f"solver '{solver}'"):
        pipeline()(["ant"], solver=solver)
