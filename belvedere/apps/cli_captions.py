"""The verb ``belvedere evaluate captions``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from belvedere.apps.cli_common import Json, progress_bar


def evaluate(
    model: Annotated[
        str, typer.Option(help="Embedded name, folder or hub id of a text-to-image model.")
    ] = "toybox-diffusion",
    count: Annotated[int, typer.Option("-n", "--count", help="How many captions; a multiple of the kinds.")] = 240,
    seed: Annotated[int, typer.Option(help="Caption and picture i depend on (seed, i) alone.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: the model's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the model's own.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, or float16 (GPU).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file for the result. Default: none.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Also write the figures into the model's card.")] = False,
    as_json: Json = False,
) -> None:
    """Make toys of captions and measure whether kind, colour and ground are those asked for, beside fresh renders.

    [bold]Examples[/bold]

    \b
      belvedere evaluate captions
      belvedere evaluate captions --model runs/toybox-diffusion/model -n 480 -o captions.json
    """
    from belvedere.apps.evaluate_captions import evaluate_captions as run
    from belvedere.checkpoints import store
    from belvedere.files import atomic_write

    with progress_bar(f"loading {model}", f"{count} pictures") as progress:
        found = run(
            model,
            count=count,
            seed=seed,
            steps=steps,
            guidance=guidance,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    if out is not None:
        with atomic_write(out) as file:
            file.write(json.dumps(found, indent=2).encode() + b"\n")
    if card:
        store.amend_card(store.resolve(model), {"quality": found})
    print(json.dumps(found) if as_json else "\n".join(f"{key:20} {value}" for key, value in found.items()))
