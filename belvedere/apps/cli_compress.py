"""The verbs of the codec: ``belvedere compress``, ``decompress`` and ``evaluate compression``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from belvedere.apps.cli_common import Json, card_folder, progress_bar
from belvedere.apps.requests import DEFAULT_CODEC, CompressRequest, parse_qualities, parse_region
from belvedere.errors import CommonError, InputError

Codec = Annotated[str, typer.Option("--model", help="Embedded name, folder, or hub id of the codec.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Jobs = Annotated[int, typer.Option(help="Tiles of a large picture at once.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]
Skip = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Go on: a file that is there counts as done, whatever it was made from.",
    ),
]


def compress(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP pictures, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File, or folder for several. Default: beside each picture.")
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(
            help="1 (smallest) to 8 (best), fractions too. Default: 4, or the model's highest if that is lower.",
            show_default=False,
        ),
    ] = None,
    target_bpp: Annotated[float | None, typer.Option(help="Instead: at most so many bits a pixel.")] = None,
    target_psnr: Annotated[float | None, typer.Option(help="Instead: at least so many dB.")] = None,
    regions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Grey picture of the same size: white matters, black does not.")
    ] = None,
    metadata: Annotated[
        str, typer.Option(help="Keep colour (the profile), all (EXIF too, but no XMP) or none.")
    ] = "colour",
    background: Annotated[str | None, typer.Option(help="Colour to lay transparency over, like white.")] = None,
    model: Codec = DEFAULT_CODEC,
    jobs: Jobs = 1,
    device: Device = "auto",
    force: Force = False,
    skip_existing: Skip = False,
    as_json: Json = False,
) -> None:
    """Compress pictures into .bvd files.

    The same file decodes on every machine, or is refused: never a wrong picture.

    [bold]Examples[/bold]

    \b
      belvedere compress photo.jpg -o photo.bvd --quality 3
      belvedere compress photos/*.jpg --out small --target-psnr 32
      belvedere compress archive --out small --skip-existing
      belvedere compress portrait.png --quality 5 --regions face.png
    """
    from belvedere.apps import compress as verbs
    from belvedere.data.folders import SUFFIXES

    request = CompressRequest(model, quality, target_bpp, target_psnr, metadata, background, jobs, device)
    found = verbs.find(images, SUFFIXES)
    targets = verbs.targets(found, out, verbs.SUFFIX, force=force, skip=skip_existing)
    if regions is not None and len(found) > 1:
        raise InputError("--regions belongs to one picture: give one")
    with progress_bar(f"loading {model}", "tiles") as progress:
        load = _once(model, device, quality)
        _each(
            [file.path for file in found],
            targets,
            lambda path, target: verbs.compress_file(path, target, load, request, regions, progress),
            lambda facts: (
                f"{facts['file']}: {facts['bytes']} bytes, {facts['bpp']:.3f} bits a pixel, "
                f"quality {facts['quality']:g}, {facts['seconds']} s"
            ),
            as_json,
        )


def decompress(
    files: Annotated[list[Path], typer.Argument(help=".bvd files, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File, or folder for several. Default: beside each, as PNG.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Only this part, in pixels; other tiles are not decoded.")
    ] = None,
    model: Codec = DEFAULT_CODEC,
    jobs: Jobs = 1,
    device: Device = "auto",
    force: Force = False,
    skip_existing: Skip = False,
    as_json: Json = False,
) -> None:
    """Make pictures of .bvd files; the ending of --out says of which format (png, jpg, webp).

    A file that is cut, altered, or was made with another model is refused with one line.

    [bold]Examples[/bold]

    \b
      belvedere decompress photo.bvd -o photo.png
      belvedere decompress small --out pictures
      belvedere decompress map.bvd -o corner.png --region 0,0,512,512
    """
    from belvedere.apps import compress as verbs

    part = parse_region(region) if region is not None else None
    found = verbs.find(files, [verbs.SUFFIX])
    targets = verbs.targets(found, out, ".png", force=force, skip=skip_existing)
    with progress_bar(f"loading {model}", "tiles") as progress:
        load = _once(model, device)
        _each(
            [file.path for file in found],
            targets,
            lambda path, target: verbs.decompress_file(path, target, load, part, jobs, progress),
            lambda facts: f"{facts['file']}: {facts['width']}x{facts['height']}, {facts['seconds']} s",
            as_json,
        )


def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of PNG, JPEG or WebP pictures, 161 pixels a side or more.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Embedded name, folder, or hub id of the codec. Several, such as networks of one rate each: their "
            f"points are one curve. Default: {DEFAULT_CODEC}.",
        ),
    ] = None,
    qualities: Annotated[
        str | None, typer.Option(help="Of the model, separated by commas. Default: every whole one, 1,2,3,...")
    ] = None,
    peers: Annotated[
        str, typer.Option(help="Formats to compare with, of jpeg, webp, avif, jpeg2000, jxl; empty for none.")
    ] = "jpeg,webp,avif,jpeg2000,jxl",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for result.json, plot.png and plot.svg (pip install 'belvedere\\[evaluate]'). Default: none."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", help="Only the first pictures. Default: all.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Also write the figures into the model's card.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a codec, and the usual formats on the same pictures: rate, quality, seconds and BD-rate.

    On the 24 pictures of Kodak the published results of SegPIC and VTM-17.0 are compared with too.

    [bold]Examples[/bold]

    \b
      belvedere evaluate compression --data kodak --out results
      belvedere evaluate compression --data photos -n 10 --qualities 2,4,6,8 --peers jpeg,avif --json
      belvedere evaluate compression --data kodak --model low --model middle --model high --model best --qualities 1
    """
    from belvedere.apps import evaluate_compression as evaluation
    from belvedere.apps import output
    from belvedere.apps import peers as formats

    pictures = evaluation.pictures_in(data, count)
    wanted = None if qualities is None else parse_qualities(qualities)
    others, missing = formats.find_peers(name.strip() for name in peers.split(",") if name.strip())
    if out:
        output.check_folder(out)
        evaluation.new_figure()  # says now what is missing for the plot
    models = list(dict.fromkeys(model or [DEFAULT_CODEC]))
    if card and len(models) > 1:
        raise InputError("--card is of one model: give one --model, or leave --card out")
    folder = card_folder(models[0]) if card else None
    with progress_bar(f"loading {', '.join(models)}", f"{len(pictures)} pictures") as progress:
        from belvedere.checkpoints.codecs import load_codec

        codecs = {name: load_codec(name, device) for name in models}
        ours = [evaluation.Learned(name, wanted or codec.learned, codec) for name, codec in codecs.items()]
        together = models if len(models) > 1 else ()
        found = evaluation.evaluate_compression([*ours, *others], pictures, together=together, progress=progress)
    found |= {"left_out": missing, **evaluation.circumstances(codecs)}
    if as_json:
        print(json.dumps(found))
    else:
        name, threads = (found["machine"][key] for key in ("name", "threads"))
        seconds = f"seconds: on {name}, the codec with {threads} threads of PyTorch, encoders of other formats with one"
        left_out = [f"left out: {name}: {why}" for name, why in missing.items()]
        print("\n".join([evaluation.table(found), "", seconds, *left_out]))
    if out:  # figures are told by now: not lost where they cannot be written
        evaluation.save(found, out)
    if folder is not None:
        from belvedere.checkpoints import store

        facts = {"data": data.name, "count": len(pictures), "points": found["curves"][models[0]]}
        rates = {f"BD-rate against {name}": rate for name, rate in found["bd_rate"]["psnr"][models[0]].items()}
        store.amend_card(folder, {"quality": {**facts, **rates}})


def _once(model: str, device: str, quality: float | None = None) -> Callable[[], Any]:
    """Return a function that loads the codec when it is called first, and checks that it has the quality.

    What is wrong with either raises ``CommonError``: every file would meet it.
    """
    loaded: list[Any] = []

    def load() -> Any:
        if not loaded:
            from belvedere.checkpoints.codecs import load_codec

            try:
                loaded.append(load_codec(model, device))
                loaded[0].level(quality)
            except InputError as error:
                raise CommonError(str(error)) from error
        return loaded[0]

    return load


def _each(
    paths: list[Path],
    targets: dict[Path, Path],
    work: Callable[[Path, Path], dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    as_json: bool,
) -> None:
    """Do the work on each file that has a target and say so.

    Of several, one that cannot be done does not stop the others, unless they would meet the same (``CommonError``).
    It is an ``InputError`` when none is done or was there already, exit code 1 when some are.
    """
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    skipped = [str(path) for path in paths if path not in targets]
    try:
        for path, target in targets.items():
            try:
                done.append(work(path, target))
            except InputError as error:
                if len(paths) == 1:
                    raise
                reason = " ".join(str(error).split())
                failed.append({"file": str(path), "reason": reason})
                if isinstance(error, CommonError):
                    raise
                print(f"belvedere: error: {reason}", file=sys.stderr)
                continue
            if not as_json:
                print(line(done[-1]))
    finally:
        if as_json and (done or failed or skipped):
            left = [str(path) for path in targets][len(done) + len(failed) :]
            print(json.dumps({"done": done, "failed": failed, "skipped": skipped, "left": left}))
    if skipped and not as_json:
        print(f"{len(skipped)} of {len(paths)} files were there already")
    if failed and not done and not skipped:
        raise InputError(f"none of {len(paths)} files could be done: see above")
    if failed:
        print(f"belvedere: {len(failed)} of {len(paths)} files could not be done: see above", file=sys.stderr)
        raise typer.Exit(1)
