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
    count = made.micro_batch + 2 if variant == "toybox" else 19
    whole = pixels(made, list(range(count)), num_inference_steps=2)
    for indices in ([1], [count - 1, 0], list(range(count - 1, -1, -1))):
        assert torch.equal(pixels(made, indices, num_inference_steps=2), whole[indices])


def test_micro_batches_follow_the_size_of_the_picture() -> None:
    assert pipeline().micro_batch == 8  # 512 positions a call, 8 x 8 in the last stage
    stages = [TRANSFORMER | {"patch": 16}, CONVNEXT | {"height": 64, "width": 64}]
    assert pipeline(stage_configs=stages).micro_batch == 1


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
        (
            "scaled_linear",
            diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        ),
        ("scaled_linear", diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)),
        ("flow", diffusers.FlowMatchEulerDiscreteScheduler()),
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
    made.register_modules(
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="sample"
        )
    )
    theirs = pixels(made, [0], num_inference_steps=100, guidance_scale=1.0)
    assert (ours - theirs).abs().mean() < 0.02


def test_latents_go_through_the_autoencoder() -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
    ).eval()  # fmt: skip
    made = DiMRPipeline(tiny(), vae=vae, id2label=NAMES, default_steps=2)
    made.set_progress_bar_config(disable=True)
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
    assert sizes == [made.micro_batch, 2 * made.micro_batch]


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
    assert [step for step, _ in seen] == [0, 1, 2]


def test_saves_and_loads_as_a_diffusers_pipeline(tmp_path: Path) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, DiMRPipeline)
    again.set_progress_bar_config(disable=True)
    assert again.labels == {name: i for i, name in NAMES.items()}
    assert torch.equal(pixels(again, [3]), pixels(made, [3]))


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


@pytest.mark.parametrize("solver", ["magic", "published"])
def test_solvers_that_do_not_fit(solver: Any) -> None:
    with pytest.raises(InputError, match=f"solver '{solver}'"):
        pipeline()(["ant"], solver=solver)
