"""How a concept is learned: the loss written out, what learns and what does not."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.concept import Concept, Conditioning
from belvedere.generation.neti_training import FrozenBase, Lesson, parameter_groups, sampler
from belvedere.seeds import BatchRng
from tests.generation.neti_models import BETAS, random, tiny_pipeline, tiny_tokenizer, tiny_xl_pipeline

SIZES: dict[str, Any] = {"anchors": 5, "hidden": 32, "frequencies": 32}
TEMPLATES = ("a photo of a {}", "a red {} of {}".replace("{}", "dog", 1))


def lesson(pipe: Any = None, **config: Any) -> Lesson:
    torch.manual_seed(0)
    base = FrozenBase(pipe or tiny_pipeline())
    return Lesson(base, base.concept("<toy>", "cat", "tiny", **(SIZES | config)), TEMPLATES)


def photographs(base: FrozenBase, count: int = 4) -> dict[str, Tensor]:
    return {"moments": base.moments(random(count, 3, 16, 16).clamp(-1, 1))}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_the_loss_is_what_the_base_gets_wrong(prediction: str) -> None:
    """Sample by sample, with the formulas of the diffusion process written out."""
    pipe = tiny_pipeline()
    pipe.scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction, **BETAS)
    learning = lesson(pipe)
    base, concept = learning.base, learning.concept
    batch, rng = photographs(base), BatchRng(3, 7, range(4))
    value, _ = learning.loss(concept.mapper, batch, rng)
    draws = {name: rng.normal(name, (4, 8, 8)) for name in ("latent", "noise")}
    times, templates = ((rng.uniform(name) * size).long() for name, size in (("time", 1000), ("template", 2)))
    truncation = concept.mapper.draw_truncation(rng)
    assert truncation is not None and len(set(templates.tolist())) == 2
    kept = base.schedule.alphas_cumprod[times]
    errors = []
    for i in range(4):
        mean, log_variance = batch["moments"][i].chunk(2)
        latent = 0.18215 * (mean + (log_variance / 2).exp() * draws["latent"][i])
        signal, spread = kept[i].sqrt(), (1 - kept[i]).sqrt()
        noisy = signal * latent + spread * draws["noise"][i]
        target = draws["noise"][i] if prediction == "epsilon" else signal * draws["noise"][i] - spread * latent
        prompt = ("a photo of a <toy>", "a red dog of <toy>")[templates[i]]
        contexts = Conditioning(base.encoders, [tiny_tokenizer(77)], [prompt], [concept])
        made = base.pipe.unet(noisy[None], times[i], contexts(times[i : i + 1], truncation[i : i + 1])).sample[0]
        errors.append((made - target).square().mean())
    torch.testing.assert_close(value, torch.stack(errors).mean(), atol=1e-5, rtol=1e-5)


def test_the_mapper_learns_and_nothing_else() -> None:
    learning = lesson()
    base, mapper = learning.base, learning.concept.mapper
    networks = (base.pipe.unet, base.pipe.vae, base.pipe.text_encoder)
    before = [{name: x.clone() for name, x in network.state_dict().items()} for network in networks]
    (group,) = parameter_groups(mapper, 0.01)
    assert group["weight_decay"] == 0.01 and len(group["params"]) == len(list(mapper.parameters()))
    optimizer = torch.optim.AdamW([group], lr=8e-3)
    batch, losses = photographs(base), []
    for _ in range(12):
        value, _ = learning.loss(mapper, batch, BatchRng(0, 0, range(4)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mapper.parameters())
    assert losses[-1] < losses[0]
    for network, weights in zip(networks, before, strict=True):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert all(torch.equal(x, weights[name]) for name, x in network.state_dict().items())
    assert len(base.pipe.tokenizer) == len(tiny_tokenizer(77))


def test_a_sample_does_not_depend_on_the_others_of_its_batch() -> None:
    learning = lesson()
    batch = photographs(learning.base)
    with torch.no_grad():
        whole, _ = learning.loss(learning.concept.mapper, batch, BatchRng(0, 0, range(4)))
        parts = [
            learning.loss(learning.concept.mapper, {"moments": batch["moments"][i : i + 2]}, BatchRng(0, 0, [i, i + 1]))
            for i in (0, 2)
        ]
    torch.testing.assert_close(whole, sum(value for value, _ in parts) / 2, atol=1e-6, rtol=1e-5)


def test_autocast_and_gradient_checkpointing_hold() -> None:
    learning = lesson()
    batch, gradients = photographs(learning.base, 2), []
    mapper, unet = learning.concept.mapper, learning.base.pipe.unet
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        mapper.zero_grad()
        learning.loss(mapper, batch, BatchRng(0, 0, range(2)))[0].backward()
        gradients.append([p.grad.clone() for p in mapper.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = learning.loss(mapper, batch, BatchRng(0, 0, range(2)))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()


def test_stable_diffusion_xl_learns_too() -> None:
    learning = lesson(tiny_xl_pipeline())
    assert learning.concept.mapper.config.layers == 12
    value, _ = learning.loss(learning.concept.mapper, photographs(learning.base), BatchRng(0, 0, range(4)))
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.concept.mapper.parameters())
    assert learning.base.added(["a cat"], 16, 16)["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]


@torch.no_grad()
def test_where_it_starts() -> None:
    words = {}
    for start in ("published", "word"):
        concept = lesson(start=start).concept
        (given,) = concept.mapper.vectors(concept.mapper(torch.tensor([5, 900]), torch.tensor([0, 6])))
        words[start] = given.word
        (norm,) = concept.mapper.config.target_norms
        assert torch.cat((given.word, given.bypass), -1).norm(dim=-1).sub(norm).abs().max() < 1e-4
    cat = tiny_pipeline().text_encoder.embeddings.token_embedding.weight[
        tiny_tokenizer().convert_tokens_to_ids("cat</w>")
    ]
    likeness = {name: torch.cosine_similarity(word, cat[None]).min() for name, word in words.items()}
    assert likeness["word"] > 0.95 > likeness["published"]


def test_a_token_that_is_part_of_its_super_category() -> None:
    base = FrozenBase(tiny_pipeline())
    row = base.encoders[0].table[tiny_tokenizer().convert_tokens_to_ids("dog</w>")]
    for start in ("published", "word"):
        concept = base.concept("og", "dog", "tiny", start=start, **SIZES)
        assert list(concept.mapper.config.target_norms) == pytest.approx([row.norm().item()])
    assert Lesson(base, concept, TEMPLATES).prompts[0] == "a photo of a og"


def test_pictures_on_the_way_use_the_published_solver_and_leave_the_base_its_own() -> None:
    learning = lesson()
    make = sampler(learning.base, learning.concept)
    assert type(make.pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert make.pipe.scheduler.config.final_sigmas_type == "sigma_min"
    assert type(learning.base.pipe.scheduler).__name__ == "PNDMScheduler"
    make.pipe.scheduler.set_timesteps(50)
    times = make.pipe.scheduler.timesteps.tolist()
    assert times[:2] == [999, 979] and times[-1] == 20


def test_what_cannot_be_learned_is_named() -> None:
    base = FrozenBase(tiny_pipeline())
    for arguments, message in (
        (("cat</w>", "cat"), "the model has this word already"),
        (("Cat", "cat"), "token Cat: the model has this word already"),
        (("red", "cat"), "token red: the model has this word already"),
        (("<toy>", "zebra"), "super-category 'zebra': must be one token"),
        (("<toy>", "cat dog"), "super-category 'cat dog': must be one token"),
        (("two words", "cat"), "must be one word"),
    ):
        with pytest.raises(InputError, match=message):
            base.concept(*arguments, "tiny", **SIZES)
    with pytest.raises(InputError, match="start 'cat': choose from published, word"):
        base.concept("<toy>", "cat", "tiny", start="cat")
    with pytest.raises(InputError, match="made for 3 layers, this U-Net has 7"):
        base.concept("<toy>", "cat", "tiny", layers=3)
    concept: Concept = base.concept("<toy>", "cat", "tiny", **SIZES)
    for templates, message in (
        (["a photo"], "template 'a photo': must have one {}"),
        (["{} of {}"], "must have one {}"),
        ([], "no templates"),
        (["red " * 80 + "{}"], "83 tokens, this model reads 77"),
    ):
        with pytest.raises(InputError, match=message):
            Lesson(base, concept, templates)
    pipe = tiny_pipeline()
    pipe.scheduler = DDPMScheduler(num_train_timesteps=100)
    with pytest.raises(InputError, match="trained on epsilon at 100 times"):
        FrozenBase(pipe)
    pipe.scheduler = DDPMScheduler(prediction_type="sample")
    with pytest.raises(InputError, match="trained on sample at 1000 times"):
        FrozenBase(pipe)
