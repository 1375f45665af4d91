"""The verbs below ``belvedere models``: verify, import, export, push."""

import json
from pathlib import Path
from typing import Annotated

import typer

from belvedere.apps.cli_common import Json
from belvedere.errors import InputError

Name = Annotated[str, typer.Argument(help="Embedded name, folder, or hub id OWNER/NAME or OWNER/NAME@REVISION.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, float16 or int8.")]


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Embedded names, folders or hub ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that the package carries.")] = False,
    as_json: Json = False,
) -> None:
    """Compare every byte of models with their manifests: weights, configs, cards; exit code 1 when one differs.

    [bold]Examples[/bold]

    \b
      belvedere models verify --all
      belvedere models verify ./model
    """
    from belvedere.apps import models as shelf

    if every == bool(names):
        raise InputError("give the names of models, or --all")
    found = {name: shelf.verify(name) for name in (names or shelf.carried())}
    if as_json:
        print(json.dumps(found))
    for name, wrong in found.items() if not as_json else ():
        print(f"{name}: " + ("verified" if not wrong else "; ".join(wrong)))
    raise typer.Exit(1 if any(found.values()) else 0)


def import_(
    file: Annotated[Path, typer.Argument(help="An official file: .pth, .pt, .bin, .ckpt, .pth.tar or .safetensors.")],
    system: Annotated[str, typer.Option(help="dimr, fitv2, nvist, segpic, neti or stable-diffusion.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Folder for the model, one that is there is replaced; of neti, a .safetensors file."
        ),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            help="Variant. Default: told by the shapes, which cannot tell FiTv2's HR-XL/2 and HR-3B/2: name those."
        ),
    ] = None,
    near: Annotated[float | None, typer.Option(help="NViST: where rays begin, of its training data.")] = None,
    far: Annotated[float | None, typer.Option(help="NViST: where rays end.")] = None,
    vae: Annotated[
        str | None, typer.Option(help="Autoencoder of DiMR's and FiTv2's latents: folder or hub id.")
    ] = None,
    layout: Annotated[
        Path | None, typer.Option(help="Stable Diffusion: a folder of the file's form; weights not needed there.")
    ] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Turn an official file of the five systems, or Stable Diffusion in one file, into a verified model folder.

    [bold]Examples[/bold]

    \b
      belvedere models import DiMR-XL_2R_800epochs.pth --system dimr --vae stabilityai/sd-vae-ft-ema -o dimr-xl
      belvedere models import mapper-steps-1000.pt --system neti -o cat.safetensors
      belvedere models import v1-5.safetensors --system stable-diffusion --layout ./sd15-configs -o sd15
    """
    from belvedere.apps.models_exchange import import_official

    if (near is None) != (far is None):
        raise InputError("--near and --far go together")
    distances = None if near is None or far is None else (near, far)
    digest = import_official(file, system, out, config=config, distances=distances, vae=vae, layout=layout, dtype=dtype)
    print(json.dumps({"out": str(out), "digest": digest}) if as_json else f"{out}: {system}, digest {digest[:12]}")


def export(
    name: Name,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to; a model that is there is replaced.")],
    dtype: Dtype = "float32",
    kind: Annotated[str, typer.Option("--format", help="safetensors, torch-export or onnx.")] = "safetensors",
    as_json: Json = False,
) -> None:
    """Write a model with weights in another number format, or its networks as graphs for other programs.

    [bold]Examples[/bold]

    \b
      belvedere models export fitv2-toybox -o fitv2-half --dtype bfloat16
      belvedere models export segpic-photo -o graphs --format onnx
    """
    from belvedere.apps.models_exchange import export as run

    written = [str(path) for path in run(name, out, dtype=dtype, kind=kind)]
    print(json.dumps({"files": written}) if as_json else "\n".join(written))


def push(
    name: Name,
    to: Annotated[
        str, typer.Option("--to", metavar="OWNER/NAME", help="Repository on the hub; made if it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a verified model to the Hugging Face hub: the files of its manifest, and nothing else.

    [bold]Examples[/bold]

    \b
      belvedere models push ./model --to me/toys --dry-run
      belvedere models push ./model --to me/toys --private
    """
    from belvedere.apps.models_push import plan
    from belvedere.apps.models_push import push as send

    made = plan(name, to, private=private)
    address = None if dry_run else send(made)
    if as_json:
        print(json.dumps({"repository": to, "files": made.files, "digest": made.digest, "address": address}))
        return
    print("\n".join(f"{size:>12}  {file}" for file, size in made.files.items()))
    total = sum(made.files.values()) / 1e6
    print(f"{len(made.files)} files, {total:.1f} MB" + (f" would go to {to}" if dry_run else f": {address}"))
