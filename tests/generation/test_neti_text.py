"""Text encoders with a concept in the prompt, against the model's own modules called one row at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from belvedere.errors import InputError
from belvedere.generation.neti import Vectors
from belvedere.generation.neti_text import Prompt, TextEncoder
from tests.generation.neti_models import LENGTH, random, tiny_text_model, tiny_tokenizer

CAT, DOG = 78, 79
"""Ids of two placeholders, which the model's vocabulary ends before."""
PROMPTS = ("a photo of cat", "cat of red dog", "a red painting of cat of cat")
ROWS = 5


def token_ids(*prompts: str) -> Tensor:
    """Return ids (b, n) in which cat and dog are the placeholders."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(list(prompts), padding="max_length", max_length=LENGTH, return_tensors="pt")["input_ids"]
    for word, placeholder in (("cat", CAT), ("dog", DOG)):
        ids[ids == tokenizer.convert_tokens_to_ids(f"{word}</w>")] = placeholder
    return ids


def given(prompts: int, width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> Vectors:
    return Vectors(*random(2, prompts, ROWS, width, seed=seed).to(dtype).unbind(0))


def one_by_one(model: Any, ids: Tensor, vectors: dict[int, Vectors], penultimate: bool = False) -> Tensor:
    """Return contexts (b, r, 2, n, c) by as many runs of the model's own modules, as the paper says it."""
    body = getattr(model, "text_model", model)
    blocks = body.encoder.layers[:-1] if penultimate else body.encoder.layers
    norm = nn.Identity() if penultimate else body.final_layer_norm

    def one(tokens: list[int], given: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        table = body.embeddings.token_embedding.weight
        x = body.embeddings(inputs_embeds=torch.stack([given[i][0] if i in given else table[i] for i in tokens])[None])
        mask = torch.full((len(tokens), len(tokens)), -torch.inf, dtype=x.dtype).triu(1)[None, None]
        for block in blocks:
            x = block(x, mask)
        directions = [given[i][1] / given[i][1].norm() if i in given else torch.zeros_like(table[i]) for i in tokens]
        moved = [h + 0.2 * h.norm() * direction for h, direction in zip(x[0], directions, strict=True)]
        return torch.stack((norm(x[0]), norm(torch.stack(moved))))

    return torch.stack(
        [
            torch.stack(
                [
                    one(tokens, {i: (v.word[number, row], v.bypass[number, row]) for i, v in vectors.items()})
                    for row in range(ROWS)
                ]
            )
            for number, tokens in enumerate(ids.tolist())
        ]
    )


def contexts(encoder: TextEncoder, ids: Tensor, vectors: dict[int, Vectors]) -> Tensor:
    prompt = encoder.begin(ids, list(vectors))
    return encoder.contexts(prompt, encoder.encode(prompt, list(vectors.values())))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("penultimate", [False, True])
@torch.no_grad()
def test_one_batch_is_the_runs_one_by_one(projection: bool, penultimate: bool) -> None:
    model, ids = tiny_text_model(projection=projection), token_ids(*PROMPTS)
    vectors = {CAT: given(3), DOG: given(3, seed=1)}
    got = contexts(TextEncoder(model, penultimate), ids, vectors)
    assert got.shape == (3, ROWS, 2, LENGTH, 16)
    torch.testing.assert_close(got, one_by_one(model, ids, vectors, penultimate), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_placeholder_may_be_the_first_token() -> None:
    model, ids, vectors = tiny_text_model(), token_ids("cat of red")[:, 1:], {CAT: given(1)}
    torch.testing.assert_close(contexts(TextEncoder(model), ids, vectors), one_by_one(model, ids, vectors))


def test_gradients_are_those_of_the_runs_one_by_one() -> None:
    model, ids = tiny_text_model().double().requires_grad_(False), token_ids(PROMPTS[2])
    weight = random(1, ROWS, 2, LENGTH, 16).double()
    gradients = []
    for run in (lambda v: contexts(TextEncoder(model), ids, v), lambda v: one_by_one(model, ids, v)):
        leaves = [x.requires_grad_(True) for x in given(1, dtype=torch.float64)]
        (run({CAT: Vectors(*leaves)}) * weight).sum().backward()
        gradients.append([x.grad for x in leaves])
    for ours, want in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, want)


@torch.no_grad()
def test_keys_do_not_see_the_bypass_and_values_only_at_the_placeholder() -> None:
    encoder, ids = TextEncoder(tiny_text_model()), token_ids(PROMPTS[0])
    vectors = given(1)
    both, without = (contexts(encoder, ids, {CAT: v}) for v in (vectors, Vectors(vectors.word, None)))
    assert torch.equal(without[:, :, 0], without[:, :, 1]) and torch.equal(both[:, :, 0], without[:, :, 0])
    changed = (both[:, :, 1] != without[:, :, 1]).any(-1)
    assert torch.equal(changed, (ids == CAT)[:, None].expand_as(changed))


@torch.no_grad()
def test_what_stands_before_the_placeholder_runs_once() -> None:
    model, tokens = tiny_text_model(), []
    model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda m, x, y: tokens.append(y.shape[0] * y.shape[1]))
    encoder = TextEncoder(model)
    prompt = encoder.begin(token_ids(PROMPTS[0]), [CAT])
    encoder.encode(prompt, [given(1)])
    encoder.encode(prompt, [given(1)])
    assert tokens == [4, ROWS * (LENGTH - 4), ROWS * (LENGTH - 4)]


@pytest.mark.parametrize("projection", [False, True])
@torch.no_grad()
def test_plain_contexts_are_the_models(projection: bool) -> None:
    model, ids = tiny_text_model(projection=projection), token_ids("a photo of a red photo", "red")
    want = model(ids, output_hidden_states=True)
    torch.testing.assert_close(TextEncoder(model).plain(ids), want.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(TextEncoder(model, penultimate=True).plain(ids), want.hidden_states[-2])


@torch.no_grad()
def test_a_mapper_in_float32_serves_a_model_in_bfloat16() -> None:
    ids, vectors = token_ids(PROMPTS[0]), {CAT: given(1)}
    want = contexts(TextEncoder(tiny_text_model()), ids, vectors)
    got = contexts(TextEncoder(tiny_text_model().bfloat16()), ids, vectors)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.03 * want.norm()


@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_whole() -> None:
    torch._dynamo.reset()
    encoder = TextEncoder(tiny_text_model())
    prompt = encoder.begin(token_ids(*PROMPTS[:1]), [CAT])

    def run(prompt: Prompt, word: Tensor, bypass: Tensor) -> Tensor:
        return encoder.contexts(prompt, encoder.encode(prompt, [Vectors(word, bypass)]))

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(prompt, *given(1)), run(prompt, *given(1)))


def test_the_digest_names_the_model_not_its_format_or_its_added_words() -> None:
    digest = TextEncoder(tiny_text_model()).digest
    for dtype in (torch.bfloat16, torch.float16):
        assert TextEncoder(tiny_text_model().to(dtype)).digest == digest
    assert TextEncoder(tiny_text_model(projection=True)).digest != TextEncoder(tiny_text_model(seed=1)).digest
    longer, trained = tiny_text_model(), tiny_text_model()
    longer.resize_token_embeddings(90)
    assert TextEncoder(longer).digest == digest
    with torch.no_grad():
        trained.encoder.layers[2].mlp.fc2.weight -= 1e-3
    assert TextEncoder(trained).digest != digest != TextEncoder(tiny_text_model(seed=1)).digest


@torch.no_grad()
def test_a_compiled_model_is_the_one_inside() -> None:
    ids = token_ids("a photo of a red photo")
    for projection in (False, True):
        model = tiny_text_model(projection=projection)
        compiled, plain = TextEncoder(torch.compile(model, backend="eager")), TextEncoder(model)
        assert compiled.digest == plain.digest and torch.equal(compiled.plain(ids), plain.plain(ids))


def test_bad_input_is_named() -> None:
    encoder = TextEncoder(tiny_text_model())
    with pytest.raises(InputError, match="a prompt has no placeholder"):
        encoder.begin(token_ids(PROMPTS[0], "a photo"), [CAT])
    with pytest.raises(InputError, match="13 tokens, the text encoder takes 12"):
        encoder.plain(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(InputError, match="Linear is no CLIP text model"):
        TextEncoder(nn.Linear(2, 2))
