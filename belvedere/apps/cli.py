"""The ``belvedere`` command: one function a verb. Nothing heavy is imported before a verb runs.

Exit codes: 0 done, 1 done but not as hoped (a picture that differs, a failed check), 2 bad input, 130 interrupted.
"""

import gc
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from belvedere.apps import (
    cli_batch,
    cli_compress,
    cli_evaluate,
    cli_options,
    cli_personalize,
    cli_serve,
    cli_view,
    models_cli,
)
from belvedere.apps.cli_common import Json, Model, NameOrCommand, one_line, progress_bar
from belvedere.apps.cli_defaults import read_defaults
from belvedere.apps.cli_faults import told
from belvedere.apps.requests import DEFAULT_MODEL, GenerateRequest, parse_interval, parse_sizes
from belvedere.errors import InputError

app = typer.Typer(
    help="Makes pictures, 3D views and small files.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")
evaluate_app = typer.Typer(rich_markup_mode="rich")
train_app = typer.Typer(cls=NameOrCommand, rich_markup_mode="rich")
app.add_typer(models_app, name="models")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate", help="Measure what a model makes.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from belvedere import __version__

        print(f"belvedere {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes pictures, 3D views and small files."""


@app.command()
def generate(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    classes: Annotated[
        str, typer.Option(help="Names or ids, separated by commas; picture i has the i-th, in turn. Default: all.")
    ] = "",
    count: Annotated[int, typer.Option("-n", "--count", help="How many pictures.")] = 12,
    seed: cli_options.Seed = 0,
    steps: cli_options.Steps = None,
    guidance: cli_options.Guidance = None,
    guidance_power: cli_options.GuidancePower = None,
    guidance_channels: cli_options.GuidanceChannels = None,
    guidance_interval: cli_options.GuidanceInterval = None,
    solver: cli_options.Solver = None,
    sizes: cli_options.Sizes = "",
    extrapolation: cli_options.Extrapolation = None,
    prompt: cli_options.Prompt = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What prompts are to lean away from.")] = "",
    concept: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Concept that prompts hold; any number of them.")
    ] = None,
    editability: cli_options.Editability = 0.0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also put all on one sheet.")] = None,
    jobs: cli_batch.Jobs = None,
    pack: cli_batch.Pack = "none",
    pack_size: cli_batch.PackSize = 1000,
    shard: cli_batch.Shard = "",
    dry_run: cli_batch.DryRun = False,
    verify: cli_batch.Verify = False,
    kind: Annotated[str, typer.Option("--format", help="png, jpeg or webp.")] = "png",
    dtype: cli_options.Dtype = "auto",
    device: cli_options.Device = "auto",
    as_json: Json = False,
) -> None:
    """Make pictures of classes, or of prompts.

    Every picture carries the record of what made it; [bold]belvedere regenerate[/bold] makes it again.

    With [bold]--jobs[/bold], the pictures of a file of requests: stopped or killed, the same command goes on, in as
    many processes as you start. Exit code 1: some lines or pictures could not be done, the others are there.

    [bold]Examples[/bold]

    \b
      belvedere generate --grid toys.png
      belvedere generate --classes car,boat -n 8 --seed 7 --out toys
      belvedere generate --model fitv2-toybox --sizes 48x96,96x48,64x64 --grid toys.png
      belvedere generate --model fitv2-toybox --size 128x128 --extrapolation vision-ntk
      belvedere generate --model ./runs/mine/model --steps 50 --guidance 2 --format webp
      belvedere generate --model ./dimr-xl --solver published --steps 250 --guidance 1.4
      belvedere generate --model ./sd --concept toy.concept.safetensors --prompt "a photo of <toy> on the beach" -n 4
      belvedere generate --jobs jobs.jsonl --out many
      belvedere generate --jobs jobs.csv --model fitv2-toybox --out many --pack tar --shard 1/4
    """
    if jobs is not None:
        raise typer.Exit(cli_batch.generate_jobs(context))
    cli_batch.check_single(context)
    from belvedere.apps import output, work

    wanted = tuple(item.strip() for item in classes.split(",") if item.strip())
    request = GenerateRequest(
        model,
        wanted,
        count,
        seed,
        cli_options.steps_of(context),
        guidance,
        dtype,
        device,
        parse_sizes(sizes),
        extrapolation,
        solver=solver,
        guidance_power=guidance_power,
        guidance_channels=guidance_channels,
        guidance_interval=parse_interval(guidance_interval),
        prompts=tuple(prompt or ()),
        negative=negative,
        concepts=tuple(str(path) for path in concept or ()),
        editability=editability,
    )
    if kind not in output.FORMATS:
        raise InputError(f"--format must be one of {', '.join(output.FORMATS)}, not {kind!r}")
    output.check_folder(out)
    if grid:
        output.check_sheet(grid, count)
    began = time.monotonic()
    with progress_bar(f"loading {model}", f"{count} pictures") as progress:
        job = work.prepare(request)
        made = output.write_pictures(job, out, kind, grid, progress)
    result = {"model": model, "seed": seed, "seconds": round(time.monotonic() - began, 1), "pictures": made}
    if as_json:
        print(json.dumps({**result, "grid": str(grid) if grid else None}))
    else:
        place = f"{out}" + (f", all on {grid}" if grid else "")
        print(f"{count} picture{'s' * (count > 1)} in {place} ({model}, seed {seed}, {result['seconds']} s)")


@app.command()
def regenerate(
    image: Annotated[Path, typer.Argument(help="A picture that 'belvedere generate' made.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the new picture to. Default: none.")] = None,
    model: Annotated[str | None, typer.Option(help="Use this model instead of the recorded one.")] = None,
    concept: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Use these concepts instead of the recorded ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a picture again from its own record and say whether every bit is the same.

    Exit code 0: bit-identical; 1: something differs, and it says what.

    [bold]Examples[/bold]

    \b
      belvedere regenerate pictures/dimr-toybox-0-00003.png
      belvedere regenerate old.png --model ./moved/model --out again
    """
    from belvedere.apps import output, work

    target = None
    if out:
        output.check_folder(out)
        target = out / image.name
        output.kind_of(target)
        if target.exists():
            raise InputError(f"{target} exists; choose another --out, or move it away")
    with progress_bar(f"loading the model of {image.name}", "1 picture") as progress:
        done = work.regenerate(image, model=model, concepts=concept or (), progress=progress)
    if target:
        output.save(done.picture.image, target, done.picture.record.to_json())
    asked = done.origin.request
    if as_json:
        result = {"identical": not done.differences, "differences": done.differences, "file": target and str(target)}
        print(json.dumps(result))
    else:
        what = f"{done.origin.kind}, picture {done.origin.index} of seed {asked.seed} by {asked.model}"
        print("\n".join([f"differs: {what}", *done.differences]) if done.differences else f"bit-identical: {what}")
    raise typer.Exit(1 if done.differences else 0)


@train_app.callback()
def _train() -> None:
    """Train a model (``train NAME``, short for ``train run NAME``), or prepare its data (``train prepare``).

    [bold]Examples[/bold]

    \b
      belvedere train fitv2-toybox --check
      belvedere train prepare --data photos --out latents --vae ./vae
    """


@train_app.command("run")
def train(
    name: Annotated[str, typer.Argument(help="A packaged config's name, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Replace values of the config.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/NAME.")] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or a checkpoint or run folder.")] = "auto",
    check: Annotated[bool, typer.Option("--check", help="Only overfit one batch, in seconds.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time, on a GPU too, or an error that says why.")
    ] = False,
) -> None:
    """Train a model (``train NAME`` is short for this); stopped, it continues when the same command is given again.

    [bold]Examples[/bold]

    \b
      belvedere train dimr-toybox --check
      belvedere train dimr-toybox --out runs/toys steps=20000
      accelerate launch -m belvedere.apps.train --config dimr-toybox
    """
    from belvedere.apps.train import train as run

    values = [*(overrides or ()), *(["deterministic=true"] if deterministic else [])]
    with one_line():
        code = run(name, resume=resume, check=check, overrides=values, out=out)
    raise typer.Exit(code)


@train_app.command("prepare")
def train_prepare(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of pictures (one class a subfolder), parquet file or WebDataset tar, or a folder of them."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the latents; the same command continues in it.")],
    vae: Annotated[
        str, typer.Option(help="Autoencoder: folder, pipeline with vae/, or hub id OWNER/NAME\\[@REVISION].")
    ],
    side: Annotated[int, typer.Option(help="At most SIDE x SIDE pixels; with --square exactly.")] = 256,
    unit: Annotated[int, typer.Option(help="Sides are multiples of this many pixels.")] = 16,
    square: Annotated[
        bool,
        typer.Option(
            "--square",
            help="Crop to squares (DiMR) instead of keeping the aspect, with the square of larger ones beside (FiTv2).",
        ),
    ] = False,
    flip: Annotated[bool, typer.Option(help="Also encode the mirror images.")] = True,
    shard_size: Annotated[int, typer.Option(help="Pictures a file.")] = 1024,
    max_skipped: Annotated[int, typer.Option(help="Pictures that may be undecodable; they are left out.")] = 10,
    batch: Annotated[int, typer.Option(help="Pictures encoded at once.")] = 16,
    workers: Annotated[int, typer.Option(help="Threads that open pictures.")] = 2,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or float16 (GPU).")] = "float32",
    device: cli_options.Device = "auto",
) -> None:
    """Encode pictures once, so that training reads latents; stopped, the same command continues.

    [bold]Examples[/bold]

    \b
      belvedere train prepare --data imagenet/train --out latents --vae stabilityai/sd-vae-ft-ema
      torchrun --nproc_per_node 8 -m belvedere train prepare --data imagenet/train --out latents --vae ./vae
    """
    from belvedere.apps.prepare import pictures_at, prepare

    with progress_bar(f"loading {vae}", "encoding pictures") as progress:
        code = prepare(
            pictures_at(data),
            out,
            vae,
            side=side,
            unit=unit,
            square=square,
            flip=flip,
            shard_size=shard_size,
            max_skipped=max_skipped,
            batch=batch,
            workers=workers,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    raise typer.Exit(code)


evaluate_app.command("generation")(cli_evaluate.generation)
evaluate_app.command("captions")(cli_evaluate.captions)
app.command()(cli_compress.compress)
app.command()(cli_compress.decompress)
evaluate_app.command("compression")(cli_compress.evaluate)
app.command()(cli_view.view)
evaluate_app.command("views")(cli_view.evaluate)
app.add_typer(cli_personalize.app, name="personalize")
app.command()(cli_serve.serve)
evaluate_app.command("concept")(cli_personalize.evaluate)


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the embedded models with their measured quality.

    [bold]Examples[/bold]

    \b
      belvedere models
      belvedere models show dimr-toybox
      belvedere models verify --all
    """
    if context.invoked_subcommand is None:
        models_list(as_json)


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the embedded models with their measured quality, as the verb alone does."""
    from belvedere.apps import models as shelf

    rows = shelf.listing()
    print(json.dumps(rows)) if as_json else shelf.print_listing(rows)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="Embedded name, folder or hub id.")], as_json: Json = False
) -> None:
    """Show one model's card: how it was made, what it reaches, and whether its files are intact."""
    from belvedere.apps import models as shelf

    row = shelf.facts(name)
    print(json.dumps(row)) if as_json else shelf.print_facts(row)


models_app.command("verify")(models_cli.verify)
models_app.command("import")(models_cli.import_)
models_app.command("export")(models_cli.export)
models_app.command("push")(models_cli.push)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, which attention and kernels run and why, what is missing and how to get it."""
    from belvedere.apps import doctor as checks

    found = checks.report()
    print(json.dumps(found)) if as_json else checks.print_report(found)
    raise typer.Exit(1 if checks.faults(found) else 0)


def main() -> None:
    """Run the command line; every failure is one line on stderr and an exit code (BELVEDERE_DEBUG=1: a traceback)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # for names of files that are no UTF-8
    try:
        command = typer.main.get_command(app)
        own = read_defaults(command)
        sys.exit(command(sys.argv[1:] or ["--help"], prog_name="belvedere", standalone_mode=False, default_map=own))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("BELVEDERE_DEBUG") == "1":
            raise
        line, code = told(error)
        print(f"belvedere: error: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(code)
    finally:
        gc.freeze()  # nothing is left to collect: without this, leaving takes a second
