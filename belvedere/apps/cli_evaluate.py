"""The verbs that measure makers of toys: ``belvedere evaluate generation`` and ``evaluate captions``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from belvedere.apps.cli_common import Extrapolation, Json, Model, progress_bar
from belvedere.apps.requests import DEFAULT_MODEL

Count = Annotated[int, typer.Option("-n", "--count", help="How many pictures; a multiple of the kinds.")]
Seed = Annotated[int, typer.Option(help="Picture i depends on (seed, i) alone.")]
Guidance = Annotated[float | None, typer.Option(help="Default: the model's own.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, or float16 (GPU).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Card = Annotated[bool, typer.Option("--card", help="Also write the figures into the model's card.")]


def generation(
    model: Model = DEFAULT_MODEL,
    count: Count = 240,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 25,
    guidance: Guidance = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Width x height in pixels. Default: the model's own.")] = "",
    extrapolation: Extrapolation = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    card: Card = False,
    as_json: Json = False,
) -> None:
    """Make toys and measure them: the share recognised as the kind asked for, and their distance from fresh renders.

    [bold]Examples[/bold]

    \b
      belvedere evaluate generation
      belvedere evaluate generation --model runs/toys/model -n 1200 --json
      belvedere evaluate generation --model fitv2-toybox --size 48x96
    """
    from belvedere.apps.evaluate import evaluate_generation as run

    asked: dict[str, Any] = {"count": count, "seed": seed, "steps": steps, "guidance": guidance, "dtype": dtype}
    with progress_bar(f"loading {model}", f"{count} pictures") as progress:
        found = run(model, **asked, size=size, extrapolation=extrapolation, device=device, progress=progress)
    _report(found, model, card, as_json)


def captions(
    model: Model = "toybox-diffusion",
    count: Count = 240,
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: the model's own.")] = None,
    guidance: Guidance = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file for the result. Default: none.")] = None,
    card: Card = False,
    as_json: Json = False,
) -> None:
    """Make toys of captions and measure whether kind, colour and ground are those asked for, beside fresh renders.

    [bold]Examples[/bold]

    \b
      belvedere evaluate captions
      belvedere evaluate captions --model runs/toybox-diffusion/model -n 480 -o captions.json
    """
    from belvedere.apps import output
    from belvedere.apps.evaluate_captions import evaluate_captions as run
    from belvedere.files import atomic_write

    if out is not None:
        output.check_folder(out.parent)
    asked: dict[str, Any] = {"count": count, "seed": seed, "steps": steps, "guidance": guidance, "dtype": dtype}
    with progress_bar(f"loading {model}", f"{count} pictures") as progress:
        found = run(model, **asked, device=device, progress=progress)
    if out is not None:
        with output.writing(out), atomic_write(out) as file:
            file.write(json.dumps(found, indent=2).encode() + b"\n")
    _report(found, model, card, as_json)


def _report(found: dict[str, Any], model: str, card: bool, as_json: bool) -> None:
    if card:
        from belvedere.checkpoints import store

        store.amend_card(store.resolve(model), {"quality": found})
    print(json.dumps(found) if as_json else "\n".join(f"{key:20} {value}" for key, value in found.items()))
