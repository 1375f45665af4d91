"""Concepts: what they are made of, for which base, and the conditioning they give a U-Net at a time."""

from typing import Any

import pytest
import torch

from belvedere.errors import InputError
from belvedere.generation.concept import Concept, Conditioning, embeddings_of, prompt_ids, token_id
from belvedere.generation.neti_attention import install
from belvedere.generation.neti_text import TextEncoder
from tests.generation.neti_models import (
    LENGTH,
    random,
    tiny_text_model,
    tiny_tokenizer,
    tiny_unet,
    tiny_xl_unet,
)

LAYERS = 7
SIZES: dict[str, Any] = {"anchors": 5, "hidden": 32, "frequencies": 32}


def concept(encoders: list[TextEncoder], token: str = "<my-cat>", layers: int = LAYERS, **config: Any) -> Concept:
    torch.manual_seed(len(token))
    tokenizers = [tiny_tokenizer() for _ in encoders]
    return Concept.create(token, "cat", encoders, tokenizers, layers, "tiny", **(SIZES | config))


@pytest.fixture
def encoder() -> TextEncoder:
    return TextEncoder(tiny_text_model())


def test_a_fresh_concept_has_the_norm_of_its_super_category(encoder: TextEncoder) -> None:
    wide = TextEncoder(tiny_text_model(width=24, seed=1), penultimate=True)
    made = concept([encoder, wide])
    cat = tiny_tokenizer().convert_tokens_to_ids("cat</w>")
    assert list(made.mapper.config.widths) == [16, 24]
    norms = [encoder.table[cat].norm().item(), wide.table[cat].norm().item()]
    assert made.mapper.config.target_norms == pytest.approx(norms)
    assert made.base.digests == (encoder.digest, wide.digest) and made.base.name == "tiny"
    words = embeddings_of("cat", [encoder, wide], [tiny_tokenizer()] * 2)
    assert torch.equal(words[1], wide.table[cat])


def test_editability_is_a_truncation(encoder: TextEncoder) -> None:
    made = concept([encoder], hidden=128)
    assert [made.truncation(e) for e in (0, 0.25, 0.5, 1)] == [128, 76, 45, 16]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="editability"):
            made.truncation(wrong)
    fixed = concept([encoder], nested_dropout=False)
    assert fixed.truncation(0) == 32
    with pytest.raises(InputError, match="learned without nested dropout"):
        fixed.truncation(0.5)


def test_the_super_category_stands_for_the_token(encoder: TextEncoder) -> None:
    assert concept([encoder]).spelled("a photo of <my-cat>, <My-Cat>s") == "a photo of cat, cats"
    assert concept([encoder], "sks").spelled("a SKS of masks, sks1, sks's") == "a cat of masks, sks1, cat's"


def test_a_wrong_base_is_named(encoder: TextEncoder) -> None:
    made = concept([encoder])
    made.check_base([TextEncoder(tiny_text_model().bfloat16())])
    with pytest.raises(InputError, match=r"<my-cat> was learned with another text encoder .* load it into tiny"):
        made.check_base([TextEncoder(tiny_text_model(seed=1))])
    with pytest.raises(InputError, match=r"for text encoders of \[16\] channels, this model's have \[24\]"):
        made.check_base([TextEncoder(tiny_text_model(width=24))])
    with pytest.raises(InputError, match="this model's have"):
        made.check_base([encoder, encoder])


@pytest.mark.parametrize("token", ["", "two words", "{}", "x" * 65, "a\nb", "a\x00"])
def test_a_token_is_one_word(encoder: TextEncoder, token: str) -> None:
    with pytest.raises(InputError, match=r"token .*: must be one word"):
        concept([encoder], token)


def test_words_that_cannot_serve_are_named(encoder: TextEncoder) -> None:
    tokenizer = tiny_tokenizer()
    for word in ("zebra", "cat dog", "é"):
        with pytest.raises(InputError, match=f"super-category '{word}': must be one token"):
            Concept.create("<x>", word, [encoder], [tokenizer], LAYERS, "tiny")
    for token in ("cat</w>", "<|endoftext|>"):
        with pytest.raises(InputError, match="the model has this word already"):
            token_id(tokenizer, token)
    assert token_id(tokenizer, "<x>") == token_id(tokenizer, "<x>") == 78


def test_prompts_without_the_concept_are_named() -> None:
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, ["a photo of <x>", "<x> " + "red " * 9], ["<x>"], LENGTH)
    assert ids.shape == (2, LENGTH) and (ids == token_id(tokenizer, "<x>")).sum() == 2 and ids[1, -1] == 77
    assert (prompt_ids(tokenizer, ["SKS, <X>s's"], ["sks"], LENGTH) == token_id(tokenizer, "sks")).sum() == 1
    with pytest.raises(InputError, match="'masks of <x>': lacks the concept, write sks into it"):
        prompt_ids(tokenizer, ["masks of <x>"], ["sks"], LENGTH)
    with pytest.raises(InputError, match="'a photo of a cat': lacks the concept, write <x> or <y> into it"):
        prompt_ids(tokenizer, ["<x>", "a photo of a cat"], ["<x>", "<y>"], LENGTH)
    for long in ("red " * 10 + "<x>", "<x>" + " red" * 10):
        with pytest.raises(InputError, match="13 tokens, this model reads 12; shorten it"):
            prompt_ids(tokenizer, [long], ["<x>"], LENGTH)


@torch.no_grad()
def test_conditioning_at_a_time(encoder: TextEncoder) -> None:
    made, prompts = concept([encoder]), ["a photo of <my-cat>", "<my-cat> of a red dog"]
    tokenizer = tiny_tokenizer()
    conditioning = Conditioning([encoder], [tokenizer], prompts, [made], editability=1.0)
    assert conditioning.layers == LAYERS
    placeholder = token_id(tokenizer, "<my-cat>")
    for number, prompt in enumerate(prompts):
        one = encoder.begin(prompt_ids(tokenizer, [prompt], ["<my-cat>"], LENGTH), [placeholder])
        vectors = made.mapper.vectors(made.mapper(torch.tensor([[700]]), torch.arange(LAYERS), 16))
        want = encoder.contexts(one, encoder.encode(one, vectors))
        torch.testing.assert_close(conditioning(700)[number : number + 1], want)
        torch.testing.assert_close(conditioning(torch.tensor([700, 700]))[number : number + 1], want)
    assert torch.equal(conditioning(torch.tensor([700, 3]))[0], conditioning(700)[0])
    assert not torch.allclose(conditioning(torch.tensor([700, 3]))[1], conditioning(700)[1], atol=1e-3)
    full = Conditioning([encoder], [tokenizer], prompts, [made])
    assert not torch.allclose(full(700), conditioning(700), atol=1e-3)
    mixed = conditioning(700, torch.tensor([[32] * LAYERS, [16] * LAYERS]))
    torch.testing.assert_close(mixed, torch.stack((full(700)[0], conditioning(700)[1])))


@torch.no_grad()
def test_two_concepts_in_a_prompt(encoder: TextEncoder) -> None:
    first, second, tokenizer = concept([encoder]), concept([encoder], "<my-dog>"), tiny_tokenizer()
    prompts = ["<my-cat> of <my-dog>"]
    both = Conditioning([encoder], [tokenizer], prompts, [first, second], [0.0, 1.0])(5)
    swapped = Conditioning([encoder], [tokenizer], prompts, [second, first], [1.0, 0.0])(5)
    torch.testing.assert_close(both, swapped)
    alone = Conditioning([encoder], [tokenizer], ["<my-cat> of cat"], [first])(5)
    torch.testing.assert_close(both[:, :, :, :3], alone[:, :, :, :3])  # causal: what follows does not reach back
    with pytest.raises(InputError, match="different numbers of layers"):
        Conditioning([encoder], [tokenizer], prompts, [first, concept([encoder], "<my-dog>", layers=3)])


@torch.no_grad()
def test_what_is_kept_is_the_same_and_does_not_run_again() -> None:
    model, runs = tiny_text_model(), []
    model.encoder.layers[0].register_forward_pre_hook(lambda module, arguments: runs.append(1))
    model.encoder.layers[0].mlp.register_forward_pre_hook(lambda module, arguments: runs.append(1))
    encoder = TextEncoder(model)
    made = concept([encoder])
    fresh, kept = (
        Conditioning([encoder], [tiny_tokenizer()], ["a photo of <my-cat>"], [made], keep=keep)
        for keep in (False, True)
    )
    want = [fresh(t) for t in (999, 500)]
    first = [kept(t) for t in (999, 500)]
    before = len(runs)
    again = [kept(torch.tensor(t)) for t in (999, 500)]
    assert before == 2 + 2 + 2 and len(runs) == before
    for rows in zip(want, first, again, strict=True):
        assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    assert kept.kept is not None
    numbers = sum(part.hidden.numel() for encoded in kept.kept.values() for part in encoded)
    assert numbers < sum(x.numel() for x in want) / 2


def test_gradients_reach_the_mapper_of_a_training_batch(encoder: TextEncoder) -> None:
    made = concept([encoder])
    encoder.model.requires_grad_(False)
    conditioning = Conditioning([encoder], [tiny_tokenizer()], ["a photo of <my-cat>"] * 2, [made])
    conditioning(torch.tensor([3, 900]), torch.full((2, LAYERS), 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.mapper.parameters())


@torch.no_grad()
def test_a_step_of_stable_diffusion(encoder: TextEncoder) -> None:
    unet, made = tiny_unet(), concept([encoder])
    install(unet, made.mapper.config.layers)
    conditioning = Conditioning([encoder], [tiny_tokenizer()], ["a photo of <my-cat>"], [made])
    images = conditioning(700).expand(3, -1, -1, -1, -1)
    assert unet(random(3, 4, 8, 8), 700, images).sample.isfinite().all()


@pytest.mark.parametrize("layers", [12, 4])
@torch.no_grad()
def test_a_step_of_stable_diffusion_xl(layers: int) -> None:
    """Two text encoders, their penultimate states side by side, pooled text from the prompt spelled out."""
    models = tiny_text_model(), tiny_text_model(width=24, projection=True, seed=1)
    encoders = [TextEncoder(model, penultimate=True) for model in models]
    made, tokenizers = concept(encoders, layers=layers), [tiny_tokenizer(), tiny_tokenizer()]
    unet, prompt = tiny_xl_unet(40), "a photo of <my-cat>"
    install(unet, layers)
    conditioning = Conditioning(encoders, tokenizers, [prompt], [made])(700)
    assert conditioning.shape == (1, layers, 2, LENGTH, 40)
    ids = tokenizers[1](made.spelled(prompt), return_tensors="pt")["input_ids"]
    pooled = torch.zeros(1, 16) + models[1](ids).text_embeds[:, :16]
    added = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
    assert unet(random(1, 4, 8, 8), 700, conditioning, added_cond_kwargs=added).sample.isfinite().all()
