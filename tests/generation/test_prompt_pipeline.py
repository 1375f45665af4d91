"""Prompts with the face of classes: a picture depends on its own prompt, size and noise alone."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from belvedere.errors import InputError
from belvedere.generation import prompt_pipeline, rooms
from belvedere.generation.concept import Conditioning
from belvedere.generation.concept_pipeline import KEPT
from belvedere.generation.prompt_pipeline import PromptPipeline
from belvedere.seeds import generator
from tests.generation.neti_models import tiny_pipeline
from tests.generation.test_concept_pipeline import concept

PROMPTS = ("a photo of <my-cat>", "<my-cat> of red", "a red painting of <my-cat>")


def pictures(pipeline: PromptPipeline, indices: range, size: tuple[int, int] = (16, 16)) -> list[Any]:
    made = []
    for part in pipeline.split([size] * len(indices)):
        chosen = indices[part.start : part.stop]
        made += pipeline(
            [i % len(pipeline.prompts) for i in chosen],
            sizes=[size] * len(chosen),
            num_inference_steps=2,
            guidance_scale=4.0,
            generator=[generator("image", i) for i in chosen],
        ).images
    return made


@pytest.mark.parametrize("personal", [True, False])
def test_a_picture_is_the_same_bit_for_bit_whatever_shares_its_call(
    monkeypatch: pytest.MonkeyPatch, personal: bool
) -> None:
    monkeypatch.setattr(prompt_pipeline, "CELLS_PER_CALL", 4 * 64)
    pipe = tiny_pipeline()
    prompts, concepts = (PROMPTS, [concept(pipe)]) if personal else (("a cat", "red dog", "of"), [])
    pipeline = PromptPipeline(pipe, prompts, "a dog", concepts)
    assert pipeline.together((16, 16)) == 4
    whole = [image.tobytes() for image in pictures(pipeline, range(6))]
    assert len(set(whole)) == 6
    assert [pictures(pipeline, range(i, i + 1))[0].tobytes() for i in (5, 2)] == [whole[5], whole[2]]
    one = pipeline.changed(prompts=prompts[2:])
    assert pictures(one, range(5, 6))[0].tobytes() == whole[5]


def test_pictures_of_one_size_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_pipeline, "CELLS_PER_CALL", 2 * 64)
    pipeline = PromptPipeline(tiny_pipeline(), ["a cat"])
    assert (pipeline.default_size, pipeline.unit) == ((16, 16), 8)
    sizes = [(16, 16)] * 3 + [(24, 16)] * 2 + [(16, 16)]
    assert pipeline.split(sizes) == [range(2), range(2, 3), range(3, 4), range(4, 5), range(5, 6)]
    (wide,) = pictures(pipeline, range(1), (16, 24))
    assert wide.size == (24, 16)
    with pytest.raises(InputError, match="size 20x16: this model makes multiples of 8 pixels a side"):
        pipeline.grid((16, 20))


def test_few_pictures_have_small_calls_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_pipeline, "CELLS_PER_CALL", 2 * 64)
    pipeline, rows = PromptPipeline(tiny_pipeline(), ["a cat"]), list[int]()
    pipeline.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    for device, count, expected in (("cpu", 1, 2), ("cuda", 1, 2), ("cuda", 3, 4), ("cuda", 5, 8)):
        monkeypatch.setattr(rooms, "full", lambda _, device=device: rooms.FULL if device == "cuda" else 1)
        for sizes in (1, count):
            rows.clear()
            seeds = [generator("image", i) for i in range(count)]
            options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "generator": seeds}
            assert len(pipeline([0] * count, sizes=[(16, 16)] * sizes, **options).images) == count
            assert set(rows) == {2 * expected}  # guided


def encodings(pipeline: PromptPipeline, indices: range, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many runs of the text encoder, for all layers of a time, these pictures take."""
    runs, encode = list[int](), Conditioning._encode
    with monkeypatch.context() as patch:
        patch.setattr(Conditioning, "_encode", lambda self, *given: runs.append(1) or encode(self, *given))
        pictures(pipeline, indices)
    return len(runs)


def test_a_prompt_is_encoded_once_a_step_and_not_again_for_further_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_pipeline, "CELLS_PER_CALL", 10 * 64)
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    two = PromptPipeline(pipe, PROMPTS[:2], concepts=[concept(pipe)])
    assert encodings(two, range(8), monkeypatch) == 2 * 2  # of eight pictures and two rows of padding
    assert encodings(two, range(8, 16), monkeypatch) == 0
    many = two.changed(prompts=[f"<my-cat>{' red' * n}" for n in range(KEPT + 1)])
    for _ in range(2):  # too many to keep
        assert encodings(many, range(2 * KEPT), monkeypatch) == 2 * (KEPT + 1)
    one = two.changed(prompts=PROMPTS[2:])
    assert encodings(one, range(1), monkeypatch) == 2 and encodings(one, range(1, 2), monkeypatch) == 0
    assert encodings(two, range(2), monkeypatch) == 2 * 2  # of all pipelines, the last one keeps


def test_a_callback_sees_no_padding_and_may_change_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_pipeline, "CELLS_PER_CALL", 4 * 64)
    pipeline, shapes = PromptPipeline(tiny_pipeline(), ["a cat", "red dog"]), set[torch.Size]()

    def latents(callback: Any) -> torch.Tensor:
        options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
        seeds = [generator("image", i) for i in range(2)]
        made = pipeline([0, 1], sizes=[(16, 16)] * 2, generator=seeds, callback_on_step_end=callback, **options)
        return made.images

    def blacken(pipe: Any, step: int, t: float, values: dict[str, Any]) -> dict[str, Any]:
        shapes.add(values["latents"].shape)
        return {"latents": torch.zeros_like(values["latents"])}

    assert torch.equal(latents(lambda *_: None), latents(None))
    assert torch.equal(latents(blacken), torch.zeros(2, 4, 8, 8)) and shapes == {(2, 4, 8, 8)}


def test_prompts_that_do_not_fit_are_named_at_once() -> None:
    pipe = tiny_pipeline()
    made = concept(pipe)
    for prompts, options, message in (
        (["a cat"], {"concepts": [made]}, "lacks the concept"),
        (["red " * 90], {}, "92 tokens, this model reads 77"),
        (["a cat"], {"negative": "red " * 90}, "92 tokens, this model reads 77"),
        (["a cat"], {"editability": 0.5}, "editability belongs to concepts"),
        (PROMPTS, {"concepts": [concept(pipe, nested_dropout=False)], "editability": 0.5}, "can only be 0"),
    ):
        with pytest.raises(InputError, match=message):
            PromptPipeline(pipe, prompts, **options)
    assert torch.is_tensor(pipe.unet.conv_in.weight)
