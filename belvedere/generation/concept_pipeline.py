"""Pictures of prompts with concepts, by a Stable Diffusion pipeline of diffusers as it is.

The pipeline is called with each concept spelled as its super-category. Just before its U-Net runs, the contexts of that
prompt give way to the conditioning of the concepts at the time of the step, in the same call for both guidance halves.
So schedulers, guidance, negative prompts, batches and callbacks are the pipeline's own, and image-to-image works too.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import ref

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.concept import Concept, Conditioning, check_lengths, check_new, token_id
from belvedere.generation.neti_attention import install, with_negative
from belvedere.generation.neti_text import TextEncoder

KEPT = 4
"""Prompts whose text is kept for further seeds, the last ones: each takes 179 MB for 50 steps of SD 1.x in float32."""
_REFUSED = ("prompt_embeds", "negative_prompt_embeds", "prompt_2", "negative_prompt_2", "clip_skip")
"""Options of pipelines that would go round the concepts."""


def text_encoders(pipe: Any) -> list[TextEncoder]:
    """Return the text encoders of a Stable Diffusion pipeline in the order of its contexts: one, or SDXL's two.

    Raises ``InputError`` for a pipeline of another kind.
    """
    models = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    if getattr(pipe, "unet", None) is None or models == [None, None] or hasattr(pipe, "text_encoder_3"):
        raise InputError(f"{type(pipe).__name__} has no U-Net with CLIP text encoders: give a Stable Diffusion model")
    large = hasattr(pipe, "text_encoder_2")
    return [TextEncoder(model, penultimate=large) for model in models if model is not None]


def tokenizers(pipe: Any) -> list[Any]:
    """Return a pipeline's tokenizers, in the order of ``text_encoders``."""
    pairs = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    names = [tokenizer for encoder, tokenizer in pairs if getattr(pipe, encoder, None) is not None]
    return [getattr(pipe, name) for name in names]


def own_tokenizers(pipe: Any) -> list[Any]:
    """Return copies of a pipeline's tokenizers, to which words can be added."""
    return [copy.deepcopy(tokenizer) for tokenizer in tokenizers(pipe)]


class ConceptSampler:
    """A plain ``StableDiffusionPipeline``, or SDXL's, whose prompts may hold concepts.

    ``pipe`` keeps its components, of which only the cross-attentions get other processors, that do the same for plain
    prompts. ``keep``: remember what the text encoders made of the last ``KEPT`` prompts for further seeds (see
    ``Conditioning``), until another sampler that keeps is called.
    """

    _keeper: ClassVar["ref[ConceptSampler] | None"] = None
    """The one that keeps prompts: of all, the one called last, for a batch has many."""

    def __init__(self, pipe: Any, concepts: Sequence[Concept] = (), keep: bool = False):
        self.pipe, self.keep = pipe, keep
        self.encoders, self.tokenizers = text_encoders(pipe), tokenizers(pipe)
        self.concepts: list[Concept] = []
        self._known: dict[tuple[str, float], Conditioning] = {}  # replaced, never changed: threads may share it
        for concept in concepts:
            self.add_concept(concept)

    def add_concept(self, concept: Concept) -> None:
        """Let prompts hold a concept.

        Raises ``InputError`` for one of another base, a token the model has already, or a second concept that has the
        same token or another number of layers.
        """
        if any(other.token.casefold() == concept.token.casefold() for other in self.concepts):
            raise InputError(f"two concepts are called {concept.token}: prompts could not tell them apart, give one")
        concept.check_base(self.encoders)
        layers = concept.mapper.config.layers
        if any(other.mapper.config.layers != layers for other in self.concepts):
            raise InputError(f"{concept.token} has {layers} layers, others have not: learn them for one U-Net")
        own = self.tokenizers if self.concepts else own_tokenizers(self.pipe)
        for tokenizer in own:
            check_new(tokenizer, concept.token)
            token_id(tokenizer, concept.token)
        self.tokenizers = own
        install(self.pipe.unet, layers)
        concept.mapper.to(self.encoders[0].table.device)
        self.concepts.append(concept)
        self._known = {}

    def check(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> None:
        """Raise ``InputError`` for a prompt without a concept or too long, or a negative prompt with one."""
        self._check_negatives(negatives)
        for prompt in prompts:
            self._conditioning(prompt, 0.0)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        editability: float = 0.0,
        num_images_per_prompt: int = 1,
        **options: Any,
    ) -> Any:
        """Return what the pipeline returns for prompts, each with one concept or more, each any number of times.

        ``editability``: from 0, most like the concept's pictures, to 1. ``negative_prompt``: plain text. ``options``:
        of the pipeline, such as ``num_inference_steps``, ``guidance_scale`` (not above 1: without guidance),
        ``generator`` or ``output_type``. Raises ``InputError`` as ``check`` does, and for options that would go round
        the concepts.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = negative_prompt and list(negative_prompt)
        if isinstance(negative_prompt, str):
            negative = [negative_prompt] * len(prompts)
        if refused := [name for name in _REFUSED if options.get(name) is not None]:
            raise InputError(f"{refused[0]} cannot be given together with concepts: leave it out")
        self._check_negatives(negative or [])
        made = {text: self._recall(text, editability) for text in dict.fromkeys(prompts)}
        each = [made[text] for text in prompts]
        spelled = [self.spelled(text) for text in prompts]
        with self._conditioned([one for one in each for _ in range(num_images_per_prompt)]):
            options |= {"negative_prompt": negative, "num_images_per_prompt": num_images_per_prompt}
            return self.pipe(spelled, **options)

    def spelled(self, prompt: str) -> str:
        """Return a prompt with the super-categories in place of the tokens."""
        for concept in self.concepts:
            prompt = concept.spelled(prompt)
        return prompt

    def _check_negatives(self, negatives: Sequence[str]) -> None:
        for negative in negatives:
            for concept in self.concepts:
                if concept.spelled(negative) != negative:
                    raise InputError(
                        f"negative prompt {negative[:80]!r}: cannot hold a concept, write {concept.super_category}"
                    )
        for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True):
            check_lengths(tokenizer, negatives, encoder.length)

    def _conditioning(self, prompt: str, editability: float) -> Conditioning:
        """Return the conditioning of one prompt; alone, so that it does not depend on the others of a batch."""
        if not self.concepts:
            raise InputError("no concept yet: add one before a prompt")
        return Conditioning(self.encoders, self.tokenizers, [prompt], self.concepts, editability, self.keep)

    def _recall(self, prompt: str, editability: float) -> Conditioning:
        """Return the conditioning of one prompt, kept where it shall be; other samplers then keep none."""
        if not self.keep:
            return self._conditioning(prompt, editability)
        keeper, ConceptSampler._keeper = ConceptSampler._keeper, ref(self)
        last = None if keeper is None else keeper()
        if last is not None and last is not self:
            last._known = {}
        key = prompt, editability
        found = self._known.get(key) or self._conditioning(prompt, editability)
        others = [(known, one) for known, one in self._known.items() if known != key]
        self._known = dict([*others, (key, found)][-KEPT:])
        return found

    @contextmanager
    def _conditioned(self, conditionings: Sequence[Conditioning]) -> Iterator[None]:
        """Within this block the U-Net is conditioned on the concepts, picture by picture."""

        def exchange(unet: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            t = arguments[1] if len(arguments) > 1 else named["timestep"]
            plain = arguments[2] if len(arguments) > 2 else named["encoder_hidden_states"]
            contexts = _contexts(conditionings, t, plain)
            if len(arguments) > 2:
                return (*arguments[:2], contexts, *arguments[3:]), named
            return arguments, named | {"encoder_hidden_states": contexts}

        handle = self.pipe.unet.register_forward_pre_hook(exchange, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _contexts(conditionings: Sequence[Conditioning], t: Tensor | float, plain: Tensor) -> Tensor:
    """Return the conditioning (b, layers, 2, n, c) at a time, or (2 b, ...) where ``plain`` has negative ones in front.

    ``plain``: the contexts (b or 2 b, n, c) that the pipeline gives its U-Net.
    """
    time = torch.as_tensor(t).flatten()[0]
    made = {id(one): one(time)[0] for one in dict.fromkeys(conditionings)}
    rows = torch.stack([made[id(one)] for one in conditionings]).to(plain)  # (b, layers, 2, n, c)
    if len(plain) == len(rows):
        return rows
    if len(plain) != 2 * len(rows):
        raise InputError(f"the pipeline's U-Net runs on {len(plain)} rows for {len(rows)} pictures: use a plain one")
    return with_negative(plain[: len(rows)], rows)
