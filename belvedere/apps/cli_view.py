"""The verbs of scenes: ``belvedere view`` and ``evaluate views``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from belvedere.apps.cli_common import Json, card_folder, check_readable, progress_bar
from belvedere.apps.cli_options import written
from belvedere.apps.requests import DEFAULT_SCENES, ViewRequest, parse_sizes
from belvedere.errors import InputError

Scenes = Annotated[str, typer.Option("--model", help="Embedded name, folder, or hub id of the network.")]
Dtype = Annotated[str, typer.Option(help="Of the network: auto, float32, bfloat16, or float16 (GPU).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def view(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG or WebP picture, or a scene.safetensors made before.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            help="What to make, by its ending: .mp4, .gif, .webp: a film; none: a folder of frames; .png: one view; "
            ".glb, .ply: a mesh; .safetensors: the scene.",
        ),
    ] = Path("orbit.mp4"),
    path: Annotated[str, typer.Option(help="Of the camera: orbit, spiral, or a JSON file of cameras.")] = "orbit",
    frames: Annotated[
        int | None, typer.Option(help="Of the path. Default: 48, or those of the file.", show_default=False)
    ] = None,
    arc: Annotated[float, typer.Option(help="Degrees of the orbit; below 360 it swings to and fro.")] = 360.0,
    elevation: Annotated[float, typer.Option(help="Degrees of the orbit, or view, above the picture's.")] = 0.0,
    angle: Annotated[float, typer.Option(help="Degrees to the right, of one view.")] = 0.0,
    fps: Annotated[int, typer.Option(help="Frames a second.")] = 24,
    what: Annotated[str, typer.Option(help="Show colour, depth, opacity or unseen: what the picture hid.")] = "colour",
    size: Annotated[
        str, typer.Option(metavar="WxH", help="Of a view, 16 to 2048 a side. Default: 256 along the longer side.")
    ] = "",
    fov: Annotated[
        float | None,
        typer.Option(
            help="Vertical field of view of IMAGE, in degrees, for models that are told it. "
            "Default: EXIF's or the model's."
        ),
    ] = None,
    distance: Annotated[
        float | None, typer.Option(help="From the camera to the middle of the scene. Default: the model's.")
    ] = None,
    pitch: Annotated[
        float | None, typer.Option(help="Degrees that the camera of IMAGE looked down. Default: found by the ground.")
    ] = None,
    near: Annotated[float | None, typer.Option(help="Where rays begin. Default: the model's.")] = None,
    far: Annotated[float | None, typer.Option(help="Where rays end. Default: the model's.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Of a mesh's surface. Default: where four texels are half opaque.")
    ] = None,
    model: Scenes = DEFAULT_SCENES,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make a scene of one picture and look at it from elsewhere.

    The picture is turned upright, laid over white where it is transparent, and its middle cut to the aspect of the
    model's pictures. What made a file is told in it, or in FILE.json beside it.

    [bold]Examples[/bold]

    \b
      belvedere view toy.png --out orbit.mp4
      belvedere view toy.png --out swing.gif --arc 60 --frames 36 --size 320x240
      belvedere view toy.png --out depth.png --what depth --angle 20
      belvedere view toy.png --out scene.safetensors
      belvedere view scene.safetensors --out scene.glb
    """
    sizes = parse_sizes(size)
    if len(sizes) > 1:
        raise InputError(f"size {size}: give one")
    request = ViewRequest(
        model=model,
        path=path,
        frames=frames,
        arc=arc,
        elevation=elevation,
        angle=angle,
        fps=fps,
        what=what,
        size=sizes[0] if sizes else None,
        distance=distance,
        fov=fov,
        pitch=pitch,
        near=near,
        far=far,
        density=density,
        dtype=dtype,
        device=device,
    )
    check_readable(source)
    with progress_bar(f"opening {source.name}", "frames") as progress:
        from belvedere.apps import view as scenes

        defaults = (name for name in scenes.unused(out, request) if not written(context, name))
        request = replace(request, **{name: getattr(ViewRequest, name) for name in defaults})
        done = scenes.view(source, out, request, force=force, progress=progress)
    if as_json:
        print(json.dumps(done))
    else:
        angles = f"looking down by {done['pitch']:.3g} degrees, field of view {done['fov']:.3g}"
        camera = f"camera {done['distance']:.3g} away, {angles}"
        print(f"{done['file']}: {done['kind']} of {source}, {done['seconds']} s ({camera})")


def evaluate(
    model: Scenes = DEFAULT_SCENES,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Capture (pictures and transforms.json, or sparse of COLMAP), or a folder laid out as MVImgNet. "
            "Default: toys, of the kinds trained on and of those never seen."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", help="Toys of each kind (default 4), or scenes of MVImgNet (all).")
    ] = None,
    images: Annotated[
        str, typer.Option(metavar="NAME", help="Subfolder of the pictures of COLMAP's models and of MVImgNet.")
    ] = "images",
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what is read of MVImgNet's cameras. Default: that of the data.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and sheet.png. Default: none.")] = None,
    lpips: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Twice, for LPIPS: vgg16-397923af.pth of torchvision, and LPIPS's vgg.pth."),
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Also write the figures into the model's card.")] = False,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure views made of one picture: PSNR and SSIM of held-out views, and whether depths are in order.

    Beside them: what copying the picture, or guessing the mean of all pictures, would reach. Scenes and views are
    the same for every model with pictures of the same size; the digest of the split says so.

    [bold]Examples[/bold]

    \b
      belvedere evaluate views --out results
      belvedere evaluate views --data fox --json
      belvedere evaluate views --model runs/nvist/model --data MVImgNet -n 20
    """
    from belvedere.apps import evaluate_views as evaluation
    from belvedere.apps import output, view_cases
    from belvedere.checkpoints import store
    from belvedere.checkpoints.views import open_scene_model

    if out:
        output.check_folder(out)
    folder = card_folder(model) if card else None
    with progress_bar(f"loading {model}", "scenes") as progress:
        loaded = open_scene_model(model, device, dtype)
        sets = view_cases.case_sets(data, loaded, count, images=images, cache=cache)
        distance = evaluation.load_lpips(lpips or ())
        sheet: list[Any] | None = [] if out else None
        found = evaluation.evaluate_views(loaded.network, sets, lpips=distance, progress=progress, sheet=sheet)
    found = {"model": model, "weights": loaded.digest, **found}
    print(json.dumps(found) if as_json else evaluation.table(found))  # first: not lost where they cannot be written
    if out and sheet:
        evaluation.save(found, sheet, out)
    if folder is not None:
        store.amend_card(folder, {"quality": evaluation.card_facts(found)})
