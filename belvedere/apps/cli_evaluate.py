"""The verbs that measure makers of pictures: ``belvedere evaluate generation`` and ``evaluate captions``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from belvedere.apps.cli_common import Json, Model, card_folder, progress_bar
from belvedere.apps.cli_options import (
    Device,
    Dtype,
    Extrapolation,
    Guidance,
    GuidanceChannels,
    GuidanceInterval,
    GuidancePower,
    Seed,
    Solver,
    Steps,
    steps_of,
)
from belvedere.apps.requests import DEFAULT_MODEL, GenerateRequest, parse_interval, parse_sizes
from belvedere.errors import InputError

Count = Annotated[int, typer.Option("-n", "--count", help="How many pictures; a multiple of the kinds.")]
Card = Annotated[bool, typer.Option("--card", help="Also write the figures into the model's card.")]


def generation(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", help="How many pictures, classes in turn. Default: 240, or all of --samples."),
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_power: GuidancePower = None,
    guidance_channels: GuidanceChannels = None,
    guidance_interval: GuidanceInterval = None,
    solver: Solver = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Width x height in pixels. Default: the model's own.")] = "",
    extrapolation: Extrapolation = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Pictures to compare with: folder, parquet, .npz of the ADM suite, or saved statistics."),
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="classifier (of toys, offline) or inception. Default: what --inception says.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of Inception-v3 for FID (.pth or .safetensors).")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Measure these pictures (folder, parquet or .npz) instead of a model's.")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the reference's statistics here (.safetensors).")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the pictures as the ADM suite takes them (.npz).")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    card: Card = False,
    as_json: Json = False,
) -> None:
    """Make pictures and measure them: toys beside fresh renders, or, with [bold]--reference[/bold], anything by its
    distance from real pictures: FID, sFID, Inception Score, precision, recall and KID.

    [bold]Examples[/bold]

    \b
      belvedere evaluate generation
      belvedere evaluate generation --model runs/toys/model -n 1200 --json
      belvedere evaluate generation --model fitv2-toybox --size 48x96
      belvedere evaluate generation --model ./flowers/model --reference flowers-val.parquet -n 500
      belvedere evaluate generation --model ./dimr-xl -n 50000 --solver published --steps 250 --guidance 1.4 \\
        --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception-2015-12-05-6726825d.pth
    """
    asked: dict[str, Any] = {"seed": seed, "steps": steps_of(context), "guidance": guidance}
    asked |= {"dtype": dtype, "device": device}
    asked |= {"count": 240 if count is None else count, "extrapolation": extrapolation, "solver": solver}
    asked |= {"guidance_power": guidance_power, "guidance_channels": guidance_channels}
    asked |= {"guidance_interval": parse_interval(guidance_interval)}
    measured: dict[str, Any] = {
        "reference": reference,
        "statistics": statistics,
        "features": features,
        "inception": inception,
    }
    measured |= {"samples": samples, "export": export}
    if card and samples is not None:
        raise InputError("--card is of a model, and --samples are of none: leave one of them out")
    if card and export is not None and reference is None:
        raise InputError("--card: --export alone measures nothing; give --reference too, or leave one of them out")
    folder = card_folder(model) if card else None
    with progress_bar("loading", "pictures" if samples else f"{asked['count']} pictures") as progress:
        if not any(measured.values()):
            from belvedere.apps.evaluate import evaluate_generation

            _report(evaluate_generation(model, **asked, size=size, progress=progress), folder, as_json)
            return
        from belvedere.apps.evaluate_pictures import Plan, evaluate_pictures

        request = GenerateRequest(model, sizes=parse_sizes(size), **asked) if samples is None else None
        found = evaluate_pictures(Plan(request, count=count, device=device, **measured), progress)
    if found is not None:
        _report(found, folder, as_json)


def captions(
    model: Model = "toybox-diffusion",
    count: Count = 240,
    seed: Seed = 0,
    steps: Steps = None,
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

    if out is not None:
        if out.is_dir():
            raise InputError(f"--out {out} is a folder: name a file in it, like {out / 'captions.json'}")
        output.check_folder(out.parent)
    folder = card_folder(model) if card else None
    asked: dict[str, Any] = {"count": count, "seed": seed, "steps": steps, "guidance": guidance, "dtype": dtype}
    with progress_bar(f"loading {model}", f"{count} pictures") as progress:
        found = run(model, **asked, device=device, progress=progress)
    _report(found, folder, as_json, out)


def _report(found: dict[str, Any], folder: Path | None, as_json: bool, out: Path | None = None) -> None:
    """Print figures, then write them to ``out`` and into the card in ``folder``, if any: not lost where that fails."""
    print(json.dumps(found) if as_json else "\n".join(f"{key:20} {value}" for key, value in found.items()))
    if out is not None:
        from belvedere.apps import output

        output.save_figures(found, out)
    if folder is not None:
        from belvedere.checkpoints import store

        store.amend_card(folder, {"quality": found})
