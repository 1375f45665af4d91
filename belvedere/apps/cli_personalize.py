"""The verbs of concepts: ``belvedere personalize``, ``personalize import`` and ``evaluate concept``."""

import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from belvedere.apps.cli_common import Json, NameOrCommand, one_line, progress_bar

app = typer.Typer(cls=NameOrCommand, rich_markup_mode="rich")
Out = Annotated[Path, typer.Option("-o", "--out", help="The concept's file, ending in .safetensors.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


@app.callback()
def _personalize() -> None:
    """Learn a concept from photographs (``personalize PHOTOS``), or take over an official one (``personalize import``).

    [bold]Examples[/bold]

    \b
      belvedere personalize photos --token "<toy>" --like toy --base ./sd -o toy.concept.safetensors
      belvedere personalize import mapper-steps-1000.pt -o cat.concept.safetensors
    """


@app.command("run")
def personalize(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of 2 or more PNG, JPEG or WebP files.")],
    token: Annotated[str, typer.Option(help="How prompts are to write it: a word the model does not know.")],
    like: Annotated[str, typer.Option(help="What it is: a word that is one token of the model.")],
    base: Annotated[str, typer.Option(help="Stable Diffusion model: embedded name, folder, or hub id.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Replace values of the recipe.")
    ] = None,
    out: Out = Path("concept.safetensors"),
    templates: Annotated[str, typer.Option(help="objects, styles, or a text file of sentences with {}.")] = "objects",
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE=X,Y,W,H", help="Part of a photograph that shows it. Default: the middle square."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Name of a packaged config of task neti, or a YAML file.")] = "neti",
    steps: Annotated[int | None, typer.Option(help="Default: the recipe's, 1000 as published.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random. Default: the recipe's.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run. Default: beside FILE, ending in .run.")] = None,
    clip: Annotated[
        Path | None,
        typer.Option(help="Folder with a CLIP model: the log tells how alike sheets are to photographs and prompts."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Learn a concept from a few photographs; stopped, the same command goes on.

    The base model stays as it is. The run's folder has the log, sheets of pictures and checkpoints.

    [bold]Examples[/bold]

    \b
      belvedere personalize photos --token "<toy>" --like toy --base ./sd -o toy.concept.safetensors
      belvedere personalize photos steps=500 --token "<toy>" --like toy --base ./sd --region a.jpg=10,20,300,300
      accelerate launch -m belvedere personalize photos accumulate=1 --token "<toy>" --like toy --base ./sd
    """
    from belvedere.apps.personalize import Plan, parse_regions, this_command
    from belvedere.apps.personalize import personalize as learn

    changes = [*(overrides or ()), *([] if seed is None else [f"seed={seed}"])]
    boxes = parse_regions(region or ())
    plan = Plan(photos, token, like, base, out, templates, boxes, recipe, changes, run, clip, steps)
    with one_line(), redirect_stdout(sys.stderr) if as_json else nullcontext():
        done = learn(plan, command=this_command(), force=force)
    if os.environ.get("RANK", "0") == "0":
        if as_json:
            print(json.dumps(done))
        elif done["file"]:
            print(f'{done["file"]}: {done["bytes"]} bytes; write {token} into prompts: --prompt "a photo of {token}"')
    raise typer.Exit(done["code"])


@app.command("import")
def take_over(
    mapper: Annotated[Path, typer.Argument(metavar="MAPPER", help="mapper-steps-N.pt of the official code.")],
    out: Out = Path("concept.safetensors"),
    learned_embeds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="learned_embeds-steps-N.bin beside it, to compare.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model it was learned for, so that others are refused. Default: not checked.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a concept file of an official mapper; nothing in it runs.

    [bold]Examples[/bold]

    \b
      belvedere personalize import mapper-steps-1000.pt -o cat.concept.safetensors
      belvedere personalize import mapper-final.pt --learned-embeds learned_embeds-final.bin --base ./sd14
    """
    from belvedere.apps.personalize import import_official

    done = import_official(mapper, out, embeds=learned_embeds, base=base, force=force)
    if as_json:
        print(json.dumps(done))
    else:
        checked = "" if done["checked"] else ", not checked: no --base given"
        print(f"{done['file']}: {done['token']}, like {done['like']}, for {done['base']}{checked}")


def evaluate(
    concept: Annotated[Path, typer.Argument(metavar="FILE", help="Concept file.")],
    photos: Annotated[Path, typer.Option(help="Folder of the photographs it was learned from.")],
    held_out: Annotated[
        Path | None, typer.Option(help="Folder of photographs it was not learned from, measured apart.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model. Default: the one named in FILE.")] = None,
    clip: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="CLIP model to measure with. Default: the toy classifier.")
    ] = None,
    dino: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="DINO or DINOv2 model that looks at pictures too.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sentences with {}, a line each. Default: 15 of them.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Pictures of each prompt.")] = 2,
    editability: Annotated[str, typer.Option(help="Values to measure at, 0 to 1.")] = "0,0.25,0.5,0.75,1",
    seed: Annotated[int, typer.Option(help="Picture i depends on (seed, i) alone.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: the model's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the model's own.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, or float16 (GPU).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and sheet.png. Default: none.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a concept: how like its photographs pictures are, and how like their prompts, over editability.

    [bold]Examples[/bold]

    \b
      belvedere evaluate concept toy.concept.safetensors --photos photos --out results
      belvedere evaluate concept toy.concept.safetensors --photos photos --held-out others --clip ./clip-vit-b-32
    """
    from belvedere.apps import evaluate_concept as verbs

    if out is not None:
        verbs.check_results(out)
    plan = verbs.Protocol(
        concept=concept,
        photos=photos,
        held_out=held_out,
        model=model,
        clip=clip,
        dino=dino,
        prompts=verbs.read_prompts(prompts),
        count=count,
        editability=verbs.parse_values(editability),
        seed=seed,
        steps=steps,
        guidance=guidance,
        dtype=dtype,
        device=device,
    )
    with progress_bar(f"loading {concept.name}", "pictures") as progress:
        found, sheet = verbs.evaluate_concept(plan, progress=progress)
    print(json.dumps(found) if as_json else verbs.table(found))  # first: not lost where they cannot be written
    if out is not None:
        verbs.save(found, sheet, out)
