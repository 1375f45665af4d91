"""Concepts in plain Stable Diffusion pipelines, against the loop written out, and what is refused."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.concept import Concept, Conditioning
from belvedere.generation.concept_pipeline import ConceptSampler, text_encoders
from tests.generation.neti_models import (
    random,
    tiny_pipeline,
    tiny_text_model,
    tiny_tokenizer,
    tiny_xl_pipeline,
)

LAYERS = 7
PROMPT = "a photo of <my-cat>"
SCHEDULERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
]


def concept(pipe: Any, token: str = "<my-cat>", layers: int = LAYERS, **config: Any) -> Concept:
    torch.manual_seed(len(token))
    encoders = text_encoders(pipe)
    sizes = {"anchors": 5, "hidden": 32, "frequencies": 32}
    tokenizers = [tiny_tokenizer(77)] * len(encoders)
    return Concept.create(token, "cat", encoders, tokenizers, layers, "tiny", **(sizes | config))


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def make(sampler: Any, prompt: Any = PROMPT, **options: Any) -> Tensor:
    """Return the latents of a few steps."""
    count = options.get("num_images_per_prompt", 1) * (1 if isinstance(prompt, str) else len(prompt))
    defaults = {"num_inference_steps": 4, "output_type": "latent", "generator": seeds(*range(count))}
    return sampler(prompt, **{**defaults, **options}).images


@torch.no_grad()
def by_hand(pipe: Any, concepts: list[Concept], prompt: str, scale: float, editability: float, negative: str) -> Tensor:
    """The published loop: a U-Net call for each half, conditioning of the step's time."""
    encoders, tokenizer = text_encoders(pipe), tiny_tokenizer(77)
    conditioning = Conditioning(encoders, [tokenizer], [prompt], concepts, editability)
    ids = tokenizer([negative], padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    plain = encoders[0].plain(ids)
    pipe.scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=seeds(0)[0]) * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        scaled = pipe.scheduler.scale_model_input(x, t)
        guided = pipe.unet(scaled, t, conditioning(t)).sample
        if scale > 1:
            unguided = pipe.unet(scaled, t, plain).sample
            guided = unguided + scale * (guided - unguided)
        x = pipe.scheduler.step(guided, t, x).prev_sample
    return x


@pytest.mark.parametrize("scale", [7.5, 1.0, 0.0])
def test_it_is_the_published_loop(scale: float) -> None:
    pipe = tiny_pipeline()
    sampler = ConceptSampler(pipe, [made := concept(pipe)])
    options = {"guidance_scale": scale, "editability": 0.5, "negative_prompt": "a red dog"}
    got = make(sampler, **options)
    torch.testing.assert_close(got, by_hand(pipe, [made], PROMPT, scale, 0.5, "a red dog"), atol=2e-5, rtol=1e-4)


def test_several_concepts_several_times() -> None:
    pipe = tiny_pipeline()
    concepts = [concept(pipe), concept(pipe, "<dog2>")]
    prompt = "<my-cat> of <dog2> of <my-cat>"
    got = make(ConceptSampler(pipe, concepts), prompt, guidance_scale=3.0)
    torch.testing.assert_close(got, by_hand(pipe, concepts, prompt, 3.0, 0.0, ""), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_any_scheduler(cls: Any) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    sampler = ConceptSampler(pipe, [concept(pipe)])
    first, again = make(sampler), make(sampler)
    assert first.isfinite().all() and torch.equal(first, again)
    assert not torch.allclose(first, make(sampler, editability=1.0), atol=1e-4)


def test_a_batch_is_its_pictures_one_by_one() -> None:
    pipe = tiny_pipeline()
    sampler = ConceptSampler(pipe, [concept(pipe)])
    prompts = [PROMPT, "<my-cat> of a red dog"]
    got = make(sampler, prompts, num_images_per_prompt=2, negative_prompt="a dog")
    alone = [
        make(sampler, prompts[i // 2], negative_prompt="a dog", generator=seeds(i)) for i in range(4)
    ]  # fmt: skip
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-5, rtol=1e-4)
    each = make(sampler, prompts, negative_prompt=["a dog", "red"])
    assert torch.allclose(each[:1], got[:1], atol=1e-5) and not torch.allclose(each[1:], alone[2], atol=1e-4)


def test_one_unet_call_a_step_for_both_halves() -> None:
    pipe, rows = tiny_pipeline(), []
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    sampler = ConceptSampler(pipe, [concept(pipe)])
    pipe.unet.register_forward_hook(lambda unet, given, made: rows.append(len(given[0])))
    make(sampler)
    assert rows == [2] * 4


def test_what_is_kept_for_further_seeds_is_the_same() -> None:
    pipe = tiny_pipeline()
    fresh, kept = ConceptSampler(pipe, [made := concept(pipe)]), ConceptSampler(pipe, [made], keep=True)
    runs: list[int] = []
    pipe.text_encoder.encoder.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    for seed in (0, 1):
        want, before = make(fresh, generator=seeds(seed)), len(runs)
        assert torch.equal(make(kept, generator=seeds(seed)), want)
        spent = len(runs) - before
        assert spent == 2 if seed else spent > 2  # a second seed runs only the plain prompts
    assert not torch.equal(make(kept, editability=0.5), make(kept))


def test_the_pipeline_stays_a_plain_one() -> None:
    pipe, other = tiny_pipeline(), tiny_pipeline()
    weights = {name: x.clone() for name, x in pipe.unet.state_dict().items()}
    sampler = ConceptSampler(pipe, [concept(pipe)])
    make(sampler)
    torch.testing.assert_close(make(pipe, "a red dog"), make(other, "a red dog"), atol=1e-5, rtol=1e-5)
    assert len(pipe.tokenizer) == len(other.tokenizer) and "<my-cat>" not in pipe.tokenizer.get_vocab()
    assert all(torch.equal(x, weights[name]) for name, x in pipe.unet.state_dict().items())
    with pytest.raises(RuntimeError, match="stop"):
        make(sampler, callback_on_step_end=lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    torch.testing.assert_close(make(pipe, "a red dog"), make(other, "a red dog"), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_pipeline_takes_concepts() -> None:
    torch._dynamo.reset()
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    want = make(ConceptSampler(plain, [made := concept(plain)]))
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    sampler = ConceptSampler(pipe, [made])
    torch.testing.assert_close(make(sampler), want, atol=1e-5, rtol=1e-4)
    sampler.add_concept(concept(pipe, "<dog2>"))
    torch.testing.assert_close(make(sampler), want, atol=1e-5, rtol=1e-4)


def test_image_to_image_takes_concepts_too() -> None:
    plain = tiny_pipeline()
    pipe = StableDiffusionImg2ImgPipeline(**plain.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    sampler = ConceptSampler(pipe, [concept(pipe)])
    options = {"image": random(1, 3, 16, 16).clamp(-1, 1), "strength": 0.8, "num_inference_steps": 6}
    latents = [make(sampler, editability=value, **options) for value in (0.0, 1.0)]
    assert latents[0].isfinite().all() and not torch.allclose(*latents, atol=1e-4)


@pytest.mark.parametrize("layers", [12, 4])
def test_stable_diffusion_xl(layers: int) -> None:
    pipe = tiny_xl_pipeline()
    sampler = ConceptSampler(pipe, [concept(pipe, layers=layers)])
    for scale in (1.0, 5.0):
        got = make(sampler, guidance_scale=scale, num_images_per_prompt=2)
        assert got.shape == (2, 4, 8, 8) and got.isfinite().all()
    assert not torch.allclose(got, make(pipe, "a photo of cat", num_images_per_prompt=2), atol=1e-4)


def test_bad_input_is_named() -> None:
    pipe = tiny_pipeline()
    sampler = ConceptSampler(pipe, [concept(pipe)])
    for prompt, options, message in (
        ("a photo of a cat", {}, "lacks the concept, write <my-cat> into it"),
        ([PROMPT, "a cat"], {}, "'a cat': lacks the concept"),
        (PROMPT + " red" * 90, {}, "96 tokens, this model reads 77; shorten it"),
        (PROMPT, {"negative_prompt": "red " * 80}, "82 tokens, this model reads 77"),
        (PROMPT, {"negative_prompt": "no <MY-cat>"}, "cannot hold a concept, write cat"),
        (PROMPT, {"editability": 2.0}, "editability 2.0: must be from 0"),
        (PROMPT, {"clip_skip": 1}, "clip_skip cannot be given together with concepts"),
    ):
        with pytest.raises(InputError, match=message):
            make(sampler, prompt, **options)
    with pytest.raises(InputError, match="no concept yet"):
        make(ConceptSampler(pipe))
    with pytest.raises(InputError, match="two concepts are called <my-cat>"):
        sampler.add_concept(concept(pipe))
    with pytest.raises(InputError, match="has 3 layers, others have not"):
        sampler.add_concept(concept(pipe, "<x>", layers=3))
    with pytest.raises(InputError, match="made for 3 layers, this U-Net has 7 cross-attentions"):
        ConceptSampler(pipe, [concept(pipe, layers=3)])
    with pytest.raises(InputError, match="learned with another text encoder"):
        ConceptSampler(tiny_pipeline(seed=1), [concept(pipe)])
    for word in ("cat</w>", "of", "Red"):
        with pytest.raises(InputError, match=f"token {word}: the model has this word already"):
            ConceptSampler(pipe, [concept(pipe, word)])
    with pytest.raises(InputError, match="has no U-Net with CLIP text encoders"):
        text_encoders(tiny_text_model())
