"""What the conditioning of a personalized prompt costs, and how exact each saving is: ``python benchmarks/neti.py``.

In one process and one run, the ways taken in turn at every step:

- a text model of ViT-L/14's size, 50 steps of one prompt: one run a layer in float32, as published; the 16 layers in
  one batch; that with the tokens before the placeholder run once; that in bfloat16; and a second seed that finds the
  first one's hidden states. Where bfloat16 is slower than float32, it is measured at one step only;
- a U-Net of SD 1.x's form at half its width: both guidance halves in one call, and in two.

Weights are random: neither speed nor exactness depends on what a prompt means. Memory is counted from the tensors.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from belvedere.apps.record import processor
from belvedere.apps.training_log import flop_counter
from belvedere.generation.concept import Concept, Conditioning, prompt_ids, token_id
from belvedere.generation.neti import Vectors
from belvedere.generation.neti_attention import install, with_negative
from belvedere.generation.neti_text import TextEncoder

LAYERS = 16
TOKEN = "<thing>"
Way = Callable[[int], Tensor]


def text_model() -> CLIPTextModel:
    """Return a text model of ViT-L/14's size."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, **sizes)).eval().requires_grad_(False)


def word_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the words of ``text`` between a start and an end."""
    words = ["<start>", "<end>", "thing", *dict.fromkeys(text.split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<start>", 0), ("<end>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<end>", pad_token="<end>", eos_token="<end>")


def contexts(model: CLIPTextModel, ids: Tensor, place: int, vectors: Vectors) -> Tensor:
    """Return the contexts (rows, 2, n, c) of as many rows by the model's own modules, all tokens of each."""
    x = model.embeddings.token_embedding(ids).repeat(len(vectors.word), 1, 1)  # (rows, n, c)
    x[:, place] = vectors.word
    x = model.embeddings(inputs_embeds=x)
    key = model.encoder(inputs_embeds=x, attention_mask=None, is_causal=True).last_hidden_state
    value = key.clone()
    length = key[:, place].norm(dim=-1, keepdim=True)
    value[:, place] += 0.2 * length * vectors.bypass / vectors.bypass.norm(dim=-1, keepdim=True)
    return model.final_layer_norm(torch.stack((key, value), 1))


def ways(prompt: str) -> tuple[dict[str, Way], Conditioning]:
    """Return functions of the time that give conditioning (layers, 2, n, c), and the one that keeps what it makes."""
    model, tokenizer = text_model(), word_tokenizer(prompt.replace(TOKEN, ""))
    encoder = TextEncoder(model)
    half = TextEncoder(copy.deepcopy(model).bfloat16())
    concept = Concept.create(TOKEN, "thing", [encoder], [tokenizer], LAYERS, "random")
    ids = prompt_ids(tokenizer, [prompt], [TOKEN], encoder.length)
    place, mapper = int((ids[0] == token_id(tokenizer, TOKEN)).nonzero()), concept.mapper
    ids[0, place] = 0  # the model's own table has no placeholder
    fresh, low, kept = (
        Conditioning([text], [tokenizer], [prompt], [concept], keep=keep)
        for text, keep in ((encoder, False), (half, False), (encoder, True))
    )

    def rows(t: int, first: int, last: int) -> Tensor:
        (vectors,) = mapper.vectors(mapper(torch.tensor([t]), torch.arange(first, last)))
        return contexts(model, ids, place, vectors)

    return {
        "one by one": lambda t: torch.cat([rows(t, layer, layer + 1) for layer in range(LAYERS)]),
        "one batch": lambda t: rows(t, 0, LAYERS),
        "start shared": lambda t: fresh(t)[0],
        "bfloat16": lambda t: low(t)[0],
        "first seed": lambda t: kept(t)[0],
        "second seed": lambda t: kept(t)[0],
    }, kept


@torch.no_grad()
def conditioning(prompt: str, steps: int) -> dict[str, Any]:
    """Time every way at every step; compare with one by one."""
    runs, kept = ways(prompt)
    assert kept.kept is not None
    with flop_counter() as counter:
        want = runs["one by one"](0)
    runs["first seed"](0)
    kept.kept.clear()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    largest, relative = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    for t in torch.linspace(999, 20, steps).round().int().tolist():
        for name, run in runs.items():
            if name == "bfloat16" and seconds[name] and seconds[name][0] > seconds["start shared"][0]:
                continue
            start = time.perf_counter()
            out = run(t)
            seconds[name].append(time.perf_counter() - start)
            want = out if name == "one by one" else want
            error = out.float() - want
            largest[name] = max(largest[name], error.abs().max().item())
            relative[name] = max(relative[name], (error.norm() / want.norm()).item())
    parts = [x for encoded in kept.kept.values() for part in encoded for x in (part.hidden, *part.bypasses)]
    memory = {
        "table of contexts": steps * want.nbytes,
        "one step": want.nbytes,
        "kept for a second seed": sum(x.nbytes for x in parts if x is not None),
    }
    gain = {
        name: statistics.median(seconds["one by one"]) / statistics.median(values) for name, values in seconds.items()
    }
    errors = {"largest_difference": largest, "relative_error": relative}
    counted = {"gflop": counter.get_total_flops() / 1e9}
    return {"prompt": prompt, "steps": steps, "seconds": seconds, "gain": gain, "bytes": memory, **counted, **errors}


@torch.no_grad()
def guidance(repeats: int) -> dict[str, Any]:
    """One U-Net call for both halves, and one for each."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=32, block_out_channels=(160, 320, 640, 640), cross_attention_dim=768).eval()
    install(unet, LAYERS)
    x, negative, given = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 768), torch.randn(1, LAYERS, 2, 77, 768)
    runs = {
        "two calls": lambda: torch.cat((unet(x, 500, negative).sample, unet(x, 500, given).sample)),
        "one call": lambda: unet(torch.cat((x, x)), 500, with_negative(negative, given)).sample,
    }
    difference = (runs["one call"]() - runs["two calls"]()).abs().max().item()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    gain = statistics.median(seconds["two calls"]) / statistics.median(seconds["one call"])
    return {"seconds": seconds, "gain": gain, "largest_difference": difference}


def spread(values: list[float]) -> str:
    """Return median, fastest and slowest in words."""
    return f"{statistics.median(values):8.4f} s  ({min(values):.4f} to {max(values):.4f})"


def show_conditioning(row: dict[str, Any]) -> None:
    """Print what ``conditioning`` found."""
    print(f"{row['prompt']!r}, seconds a step, {row['steps']} steps")
    for name, values in row["seconds"].items():
        print(
            f"  {name:13} {spread(values)}  {row['gain'][name]:9.2f}x"
            f"  largest difference {row['largest_difference'][name]:.1e}, relative {row['relative_error'][name]:.1e}"
        )
    print("  " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in row["bytes"].items()))


def show_guidance(row: dict[str, Any]) -> None:
    """Print what ``guidance`` found."""
    for name, values in row["seconds"].items():
        print(f"guidance, {name:9} {spread(values)}")
    print(f"  {row['gain']:.2f}x, largest difference {row['largest_difference']:.1e}")


def main() -> None:
    """Print the tables and write the JSON after each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default=f"a photo of a {TOKEN} on a beach")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="conditioning,guidance")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "neti.json")
    options = parser.parse_args()
    parts = {
        "conditioning": lambda: (conditioning(options.prompt, options.steps), show_conditioning),
        "guidance": lambda: (guidance(options.repeats), show_guidance),
    }
    machine = {"cpu": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    machine |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in options.parts.split(","):
        result, show = parts[name]()
        show(result)
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(before | {name: machine | result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
