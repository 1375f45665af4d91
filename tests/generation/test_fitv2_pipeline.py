"""The pipeline of any size: a picture is its own seed's alone, bit for bit, in calls of constant rows."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import belvedere
from belvedere.checkpoints import store
from belvedere.errors import InputError
from belvedere.generation import fitv2_pipeline
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.fitv2_config import VARIANTS
from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
from belvedere.generation.flow_sampling import SOLVERS
from tests.generation.test_fitv2 import tiny

NAMES = dict(enumerate(["ant", "bee", "cat", "dog"]))
MIXED = [(4, 8), (2, 2), (6, 4), (12, 8), (4, 4), (4, 4), (2, 10), (8, 4), (10, 12), (8, 6)] * 2
"""Twenty sizes in pixels, of 1 to 30 tokens; 16 fill a call, more than 8 have one for themselves."""


def pipeline(scheduler: Any = None, **changes: Any) -> FiTv2Pipeline:
    network = tiny(**({"channels": 3, "prediction": "sample"} | changes))
    made = FiTv2Pipeline(network, scheduler=scheduler, id2label=NAMES, default_steps=3)
    made.set_progress_bar_config(disable=True)
    return made


def generators(indices: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in indices]


def latents(made: FiTv2Pipeline, indices: list[int], **options: Any) -> Any:
    """Pictures number ``indices`` of the mixed sizes, each with its own seed and class."""
    labels, sizes = [i % 4 for i in indices], [MIXED[i] for i in indices]
    return made(labels, sizes=sizes, generator=generators(indices), output_type="latent", **options).images


def assert_pictures_are_their_own(made: FiTv2Pipeline, **options: Any) -> None:
    whole = latents(made, list(range(20)), **options)
    assert [x.shape for x in whole] == [(3, *size) for size in MIXED]
    assert all(x.isfinite().all() for x in whole)
    for indices in ([1], [8], [19, 2]):
        for i, x in zip(indices, latents(made, indices, **options), strict=True):
            assert torch.equal(x, whole[i])


# Independence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_picture_does_not_depend_on_its_neighbours(
    solver: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitv2_pipeline, "TOKENS_PER_CALL", 16)
    made = pipeline(depth=1, prediction="velocity" if solver == "dopri5" else "sample")
    made.network.to(dtype)
    options = (
        {"solver_options": {"rtol": 1.0}, "guidance_scale": 1.0}
        if solver == "dopri5"
        else {"guidance_interval": (0.0, 0.7)}
    )
    assert_pictures_are_their_own(made, solver=solver, num_inference_steps=2, **options)


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [diffusers.FlowMatchEulerDiscreteScheduler, unipc], ids=["euler", "unipc"])
def test_nor_does_it_with_diffusers_schedulers(make: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitv2_pipeline, "TOKENS_PER_CALL", 16)
    made = pipeline(depth=1, scheduler=make())
    made.network.to(dtype)
    assert_pictures_are_their_own(made, num_inference_steps=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nor_does_it_in_a_network_of_real_width(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = FiTv2(**(VARIANTS["toybox"] | {"depth": 2, "refine_depth": 1, "refine_dim": 64}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    made = FiTv2Pipeline(network.to(dtype).eval())
    sizes = [(64, 64), (40, 80), (8, 8), (32, 64), (96, 104)]
    options: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    whole = made([0] * 5, sizes=sizes, generator=generators([0, 1, 2, 3, 4]), **options).images
    for i in (1, 4):
        (alone,) = made([0], sizes=[sizes[i]], generator=generators([i]), **options).images
        assert torch.equal(alone, whole[i])


def test_each_image_draws_from_its_own_generator() -> None:
    made = pipeline()
    options: dict[str, Any] = {"height": 4, "width": 4, "solver": "sde-euler", "output_type": "latent"}
    first, second = (made([0, 0], generator=generators(seeds), **options).images for seeds in ([1, 2], [1, 3]))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_one_generator_for_all_gives_its_noise_in_order() -> None:
    made, (shared,) = pipeline(), generators([5])
    sizes = [(4, 4), (2, 6)]
    together = made([0, 1], sizes=sizes, generator=shared, output_type="latent").images
    (again,) = generators([5])
    for i, size in enumerate(sizes):
        assert torch.equal(made([i], sizes=[size], generator=again, output_type="latent").images[0], together[i])


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_calls_have_the_rows_of_the_capacity_or_of_one_large_image(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rows = pipeline(), list[int]()
    run = made.network.run
    monkeypatch.setattr(made.network, "run", lambda x, *rest: rows.append(len(x)) or run(x, *rest))
    sizes = [(2, 2), (32, 16), (46, 12), (8, 8)]  # 1, 128, 138 and 16 tokens
    made([0] * 4, sizes=sizes, guidance_scale=weight, num_inference_steps=1)
    assert made.capacity() == 256
    assert [n // (1 if weight == 1 else 2) for n in rows] == [256, 138, 256]


def test_modulation_is_one_product_a_class_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = pipeline(), []
    modulate = made.network.modulate
    monkeypatch.setattr(made.network, "modulate", lambda t, y: calls.append((len(t), y[0].item())) or modulate(t, y))
    made([1, 3, 1], height=4, width=4, num_inference_steps=20)
    assert sorted(calls) == [(20, 1), (20, 3), (20, 4)]


def test_each_image_has_its_own_extrapolation() -> None:
    made = pipeline()
    names, sizes = ["none", "vision-ntk", "yarn"], [(16, 12)] * 3
    options: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 2}
    whole = made([0] * 3, sizes=sizes, extrapolation=names, generator=generators([0, 0, 0]), **options).images
    for i, name in enumerate(names):
        alone = made([0], sizes=sizes[:1], extrapolation=name, generator=generators([0]), **options).images
        assert torch.equal(alone[0], whole[i])
    assert not torch.equal(whole[0], whole[1]) and not torch.equal(whole[1], whole[2])


def test_guidance_reaches_the_channels_and_times_it_is_given() -> None:
    made = pipeline(prediction="velocity")

    def of(**options: Any) -> Tensor:
        return made([1], height=4, width=4, generator=generators([0]), output_type="latent", **options).images[0]

    plain, full = of(guidance_scale=1), of(guidance_scale=3)
    assert torch.equal(of(guidance_scale=3.0, guidance_channels=3), full)
    # One step from t = 0: outside the interval there is no guidance, and a channel that is not guided is plain.
    one: dict[str, Any] = {"num_inference_steps": 1, "solver": "euler"}
    assert torch.equal(of(guidance_scale=3.0, guidance_interval=(0.5, 1.0), **one), of(guidance_scale=1.0, **one))
    partly, unguided = of(guidance_scale=3.0, guidance_channels=2, **one), of(guidance_scale=1.0, **one)
    assert torch.equal(partly[2], unguided[2]) and not torch.equal(partly[:2], unguided[:2])
    assert not torch.equal(of(guidance_scale=3.0, guidance_power=2.0), full) and not torch.equal(full, plain)


# Steps


@pytest.mark.parametrize("solver", SOLVERS)
def test_callback_sees_every_step_to_the_end(solver: str) -> None:
    made, seen = pipeline(prediction="velocity"), []

    def callback(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe is made
        shapes = [[x.shape for x in tensors[name]] for name in ("latents", "clean")]
        seen.append((step, t, tensors["latents"], shapes))
        return tensors

    options: dict[str, Any] = {"solver": solver, "num_inference_steps": 3, "callback_on_step_end": callback}
    out = made([0, 1], sizes=[(4, 4), (2, 6)], output_type="latent", **options).images
    steps, times, last, shapes = zip(*seen, strict=True)
    assert list(steps) == list(range(len(steps))) and len(steps) >= 3
    assert list(times) == sorted(times) and times[-1] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(last[-1], out, strict=True))
    assert all(pair == [[(3, 4, 4), (3, 2, 6)]] * 2 for pair in shapes)


def test_callback_may_stop() -> None:
    made, seen = pipeline(), []

    def callback(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        if step == 1:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        made("cat", num_inference_steps=5, callback_on_step_end=callback)
    assert seen == [0, 1]


def with_scheduler(solver: str) -> tuple[FiTv2Pipeline, dict[str, Any]]:
    """Return a pipeline, with a scheduler where that is asked for, and how to call it for latents in three steps."""
    if solver == "scheduler":
        made, options = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(), prediction="velocity"), {}
    else:
        made, options = pipeline(prediction="velocity"), {"solver": solver}
    return made, options | {"num_inference_steps": 3, "output_type": "latent"}


@pytest.mark.parametrize("solver", [*SOLVERS, "scheduler"])
@pytest.mark.parametrize("returned", [True, False])
def test_a_callback_that_changes_nothing_changes_no_bit(solver: str, returned: bool) -> None:
    made, options = with_scheduler(solver)
    options |= {"sizes": [(4, 4), (2, 6)]}
    want = made([0, 1], generator=generators([0, 1]), **options).images
    options |= {"callback_on_step_end": lambda pipe, step, t, tensors: tensors if returned else None}
    got = made([0, 1], generator=generators([0, 1]), **options).images
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("solver", [*SOLVERS, "scheduler"])
def test_what_a_callback_returns_takes_the_place_of_the_pictures(solver: str) -> None:
    made, options = with_scheduler(solver)
    options |= {"height": 4, "width": 6}
    plain = made([0], generator=generators([0]), **options).images[0]
    seen: list[Tensor] = []

    def brighten(pipe: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"][0])
        return {"latents": [x + 1 for x in tensors["latents"]]}

    got = made([0], generator=generators([0]), **options, callback_on_step_end=brighten).images[0]
    assert torch.equal(got, seen[-1] + 1) and not torch.equal(got, plain + 1)


def test_latents_of_other_shapes_are_refused() -> None:
    made = pipeline()
    for latents in ([torch.zeros(3, 4, 4)], [torch.zeros(3, 8, 8)] * 2):
        with pytest.raises(InputError, match="callback_on_step_end returned latents of"):
            made("cat", callback_on_step_end=lambda *_, latents=latents: {"latents": latents})


# Forms


def test_output_forms() -> None:
    made = pipeline()
    assert made("cat").images[0].size == (8, 8)  # the trained side: 4 patches of 2 pixels
    assert [x.size for x in made(["cat", 1], sizes=[(4, 6), (8, 2)]).images] == [(6, 4), (2, 8)]
    assert made(["cat", 1], height=4, output_type="np").images.shape == (2, 4, 8, 3)
    assert made(["cat", 1], width=4, output_type="pt").images.shape == (2, 3, 8, 4)
    assert [x.shape for x in made([0, 1], sizes=[(4, 6), (8, 2)], output_type="pt").images] == [(3, 4, 6), (3, 8, 2)]
    assert made("cat", return_dict=False)[0][0].mode == "RGB"


def autoencoder() -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
    ).eval()  # fmt: skip


def test_latents_go_through_the_autoencoder() -> None:
    vae = autoencoder()
    made = FiTv2Pipeline(tiny(), vae=vae, id2label=NAMES, default_steps=2)
    made.set_progress_bar_config(disable=True)
    assert (made.unit, made.default_size) == (4, (16, 16))  # 2 latents a patch, 2 pixels a latent
    options: dict[str, Any] = {"sizes": [(8, 12), (16, 16)]}
    latent = made([0, 1], generator=generators([0, 1]), output_type="latent", **options).images
    picture = made([0, 1], generator=generators([0, 1]), output_type="pt", **options).images
    assert [x.shape for x in latent] == [(4, 4, 6), (4, 8, 8)]
    want = (vae.decode(latent[0][None] / 0.18215).sample[0] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(picture[0], want, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="size 6x8: this model makes multiples of 4 pixels a side"):
        made([0], sizes=[(8, 6)])


def test_offloading_is_of_the_autoencoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, sent = FiTv2Pipeline(tiny(), vae=autoencoder(), default_steps=2), list[int]()
    want = made([0], generator=generators([0]), output_type="pt").images
    made.enable_model_cpu_offload(device="cpu")
    assert not hasattr(made.network, "_hf_hook")
    (hook,) = made._all_hooks
    monkeypatch.setattr(hook, "offload", lambda: sent.append(1))
    assert torch.equal(made([0], generator=generators([0]), output_type="pt").images, want) and sent == [1]


def test_saves_and_loads_as_a_diffusers_pipeline(tmp_path: Path) -> None:
    made = pipeline(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0))
    made.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(again, FiTv2Pipeline)
    again.set_progress_bar_config(disable=True)
    assert again.labels == {name: i for i, name in NAMES.items()}
    assert torch.equal(latents(again, [3])[0], latents(made, [3])[0])


@pytest.mark.parametrize("vae", [False, True])
def test_saves_and_loads_as_a_model_of_ours(tmp_path: Path, vae: bool) -> None:
    made = FiTv2Pipeline(
        tiny(),
        vae=autoencoder() if vae else None,
        id2label=NAMES,
        default_steps=2,
        default_guidance=3.0,
        default_shift=2.0,
    )
    store.save(made, tmp_path / "model", {})
    again = belvedere.load(tmp_path / "model")
    assert isinstance(again, FiTv2Pipeline)
    results = [p("cat", height=8, generator=generators([1]), output_type="latent").images for p in (made, again)]
    assert torch.equal(*results)


def test_a_default_size_of_its_own(tmp_path: Path) -> None:
    made = FiTv2Pipeline(tiny(channels=3), default_side=6, default_steps=1)
    assert made.default_size == (12, 12) and made(0, width=4).images[0].size == (4, 12)
    store.save(made, tmp_path / "model", {})
    assert belvedere.load(tmp_path / "model").default_size == (12, 12)
    for wrong in (0, -3, 1.5, "6", 10**6):
        with pytest.raises(InputError, match=r"default_side .*: must be an integer from 1 to 65536"):
            FiTv2Pipeline(tiny(), default_side=wrong)  # type: ignore[arg-type]


# What is refused


def test_a_network_of_version_one() -> None:
    for change in ({"learn_sigma": True}, {"channels_first": True}):
        with pytest.raises(InputError, match="FiT of version 1"):
            FiTv2Pipeline(tiny(**change))


@pytest.mark.parametrize("size", [(8, 7), (3, 8), (0, 8), (8, 0), (-2, 8)])
def test_sizes_the_model_cannot_make(size: tuple[int, int]) -> None:
    message = f"size {size[1]}x{size[0]}: this model makes multiples of 2 pixels a side"
    with pytest.raises(InputError, match=message):
        pipeline()("ant", sizes=[size])
    with pytest.raises(InputError, match=message):
        pipeline()("ant", height=size[0], width=size[1])
    with pytest.raises(InputError, match=message):
        pipeline().split([size])


def test_wrong_numbers_of_things() -> None:
    made = pipeline()
    with pytest.raises(InputError, match=r"3 sizes for 2 images: give one \(height, width\) each, or height and width"):
        made([0, 1], sizes=[(4, 4)] * 3)
    with pytest.raises(InputError, match="sizes, and height or width too: give either"):
        made([0, 1], sizes=[(4, 4)] * 2, height=4)
    with pytest.raises(InputError, match="1 generators for 2 images"):
        made([0, 1], generator=generators([0]))
    with pytest.raises(InputError, match="3 extrapolations for 2 images"):
        made([0, 1], extrapolation=["none"] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "magic"}, "unknown solver 'magic'"),
        ({"solver_options": {"rtol": 0.1}}, "solver multistep has no option 'rtol'"),
        ({"extrapolation": "magic"}, "unknown extrapolation 'magic'"),
        ({"guidance_interval": (0.7, 0.2)}, "guidance interval"),
        ({"guidance_scale": 0.5, "guidance_power": 1.0}, "cosine guidance needs scale >= 1"),
        ({"num_inference_steps": 0}, "steps"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline()("ant", **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [("unicorn", "unknown class 'unicorn': this model knows ant"), ([4], "unknown class 4"), (-1, "unknown class -1")],
)
def test_unknown_classes(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline()(labels)
