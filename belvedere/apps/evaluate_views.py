"""Measuring a network that makes scenes of pictures: how good its views are, beside those of no network at all.

Two protocols. "official", that of NViST's released evaluation: all views of a scene, the one that the network saw too;
LPIPS of pictures in [0, 1] where [-1, 1] is expected. "strict": only views that it did not see, and LPIPS as it is
meant. In both, figures are means over views, then over scenes; nothing is random (the released evaluation jitters).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from belvedere.apps import output
from belvedere.apps.view_cases import Case, CaseSet, degrees_between
from belvedere.apps.view_metrics import psnr, rank_correlation, ssim
from belvedere.apps.work import Progress
from belvedere.checkpoints.tensors import read_state_dict
from belvedere.data.reading import naming
from belvedere.synthesis.cameras import conditions
from belvedere.synthesis.export import to_frame
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.perceptual import Lpips
from belvedere.synthesis.render import Rendered, occupancy_for_views, render_view

SHEET_SCENES, SHEET_VIEWS = 8, 3
"""Of each set on a sheet."""
Row = dict[str, Any]
FIGURES = ("psnr", "ssim", "lpips", "depth_rank", "copied_psnr", "copied_ssim", "mean_psnr", "mean_ssim")
SEEN = ("psnr", "ssim", "lpips", "depth_rank")
"""What is told of the views that the network saw."""
OFFICIAL = {"psnr": "psnr", "ssim": "ssim", "official_lpips": "lpips", "depth_rank": "depth_rank"}
"""Figures of a row by the names they have in the official protocol."""
PROTOCOLS = {
    "official": "all views of a scene, the input's too; LPIPS of pictures in [0, 1] taken for [-1, 1]; no jitter",
    "strict": "held-out views only; LPIPS as it is meant",
}


@torch.no_grad()
def render_case(network: NViST, case: Case) -> list[Rendered]:
    """Return what the network makes of a scene's one view, seen by all its cameras."""
    config: Any = network.config
    device = network.device
    seen = conditions([case.cameras[case.source]]).to(device)
    field = network(case.pictures[case.source][None].to(device), seen)
    options: dict[str, Any] = {"near": config.near, "far": config.far, "samples": config.samples}
    options["occupancy"] = occupancy_for_views(field)
    return [render_view(field, camera, **options) for camera in case.cameras]


def measure_case(case: Case, views: Sequence[Rendered], far: float, lpips: Lpips | None = None) -> list[Row]:
    """Return the figures of each view of a scene: the network's, of the input copied and of the mean picture.

    ``seen``: whether it is the view that the network saw. ``degrees``: the angle at the origin between its camera and
    that view's. ``depth_rank``: see ``depth_rank``, where the truth is known. ``far`` of the network's rays. It is
    computed where the views are, LPIPS on a GPU without TF32.
    """
    rows = []
    pictures, mean = (x.to(views[0].colour.device) for x in (case.pictures, case.mean))
    for i, (view, truth) in enumerate(zip(views, pictures, strict=True)):
        made = view.colour.permute(2, 0, 1).clamp(0, 1)  # (3, h, w)
        guesses = {"": made, "copied_": pictures[case.source], "mean_": mean}
        row: Row = {"scene": case.scene, "kind": case.kind, "view": i, "strict": i in case.held_out}
        row["seen"] = i == case.source
        row["degrees"] = degrees_between(case.cameras[case.source], case.cameras[i])
        for name, guess in guesses.items():
            row |= {f"{name}psnr": psnr(guess, truth), f"{name}ssim": ssim(guess, truth)}
        if lpips is not None:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                row["lpips"] = lpips(made[None], truth[None]).item()
                row["official_lpips"] = lpips.official(made[None], truth[None]).item()
        if case.distance is not None:
            row["depth_rank"] = depth_rank(view, case.distance[i], far)
        rows.append(row)
    return rows


def depth_rank(view: Rendered, truth: Tensor, far: float) -> float:
    """Return Spearman's rank correlation of rendered and true distances (h, w), where there is something to be seen.

    What a ray does not meet is taken to lie at ``far``. NaN where either is the same everywhere.
    """
    truth = truth.to(view.depth.device)
    there = truth.isfinite()
    return rank_correlation((view.depth + (1 - view.opacity) * far)[there], truth[there])


def load_lpips(files: Sequence[Path]) -> Lpips | None:
    """Return LPIPS with the weights in these files, see ``Lpips``; None without files."""
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_state_dict(file)
    return Lpips(weights) if files else None


def evaluate_views(
    network: NViST,
    sets: Sequence[CaseSet],
    *,
    lpips: Lpips | None = None,
    progress: Progress | None = None,
    sheet: list[tuple[Image.Image, str]] | None = None,
) -> dict[str, Any]:
    """Measure a network on all scenes of the sets; the result is plain JSON.

    For each set: its ``split`` and the digest of that, the figures of ``summary``, and ``rows``, all measurements; what
    has no value, such as the PSNR of a picture compared with itself, is null. ``sheet``: a list to which the rows of
    the first scenes of each set are added, see ``sheet_row``. ``progress`` counts scenes.
    """
    config: Any = network.config
    found: dict[str, Any] = {}
    done, total = 0, sum(part.count for part in sets)
    for part in sets:
        rows: list[Row] = []
        for i, case in enumerate(part.cases()):
            with naming(case.scene):
                views = render_case(network, case)
            rows += measure_case(case, views, config.far, lpips)
            if sheet is not None and i < SHEET_SCENES:
                sheet += sheet_row(case, views)
            done += 1
            if progress:
                progress(done, total)
        plain = [{key: _finite(value) for key, value in row.items()} for row in rows]
        found[part.name] = {"split": part.split, "digest": part.digest, **summary(rows), "rows": plain}
    return {"protocols": PROTOCOLS, "sets": found}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of both protocols, and the strict ones of each kind and of each scene.

    ``seen``: those of the views that the network saw, how much of a picture gets into its scene. Of the input copied
    and of the mean picture there are strict ones only: the first is the input view.
    """
    strict = [row for row in rows if row["strict"]]
    names = [name for name in FIGURES if name in rows[0]]
    official = _means(rows, [name for name in OFFICIAL if name in rows[0]])
    return {
        "official": {OFFICIAL[name]: value for name, value in official.items()},
        "strict": _means(strict, names),
        "seen": _means([row for row in rows if row["seen"]], [name for name in SEEN if name in rows[0]]),
        "kinds": {kind: _means(group, names) for kind, group in _grouped(strict, "kind").items()},
        "scenes": {scene: _means(group, names) for scene, group in _grouped(strict, "scene").items()},
    }


def _means(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of each figure over views, then over scenes; None where it has no value in any."""
    scenes = list(_grouped(rows, "scene").values())
    means = {name: [_mean([row[name] for row in scene]) for scene in scenes] for name in names}
    return {name: _finite(_mean(values)) for name, values in means.items()}


def _mean(values: Iterable[float]) -> float:
    """Return the mean of what is not NaN."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _grouped(rows: Iterable[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def sheet_row(case: Case, views: Sequence[Rendered]) -> list[tuple[Image.Image, str]]:
    """Return a row of a sheet with captions: the input, then some of the views held out, each beside the truth."""
    step = max(1, len(case.held_out) // SHEET_VIEWS)
    chosen = (*case.held_out[::step], *case.held_out[-1:] * SHEET_VIEWS)[:SHEET_VIEWS]
    row = [(_image(case.pictures[case.source]), case.scene)]
    for i in chosen:
        row += [(Image.fromarray(to_frame(views[i].colour)), f"view {i}"), (_image(case.pictures[i]), "truth")]
    return row


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(to_frame(picture.permute(1, 2, 0)))  # (h, w, 3)


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text: the figures of both protocols and of guesses, then of each kind."""
    head = ("PSNR dB", "SSIM", "LPIPS", "depth rank")
    lines = []
    for name, part in result["sets"].items():
        lines += ["", f"{name}: {len(part['scenes'])} scenes, split {part['digest']}"]
        lines.append(f"{'':24}" + "".join(f"{title:>12}" for title in head))
        strict = part["strict"]
        table_rows = {"official protocol": part["official"], "strict": strict, "views it saw": part["seen"]}
        for guess, title in (("copied_", "input copied"), ("mean_", "mean picture")):
            table_rows[f"{title} (strict)"] = {key: strict[f"{guess}{key}"] for key in ("psnr", "ssim")}
        lines += [_line(title, row) for title, row in (table_rows | part["kinds"]).items()]
    return "\n".join(lines[1:])


def _line(title: str, figures: Mapping[str, float | None]) -> str:
    values = (figures.get(name) for name in SEEN)
    return f"{title:24}" + "".join(f"{'-' if v is None else format(v, '.4f'):>12}" for v in values)


def save(result: Mapping[str, Any], sheet: Sequence[tuple[Image.Image, str]], folder: Path) -> None:
    """Write ``result.json`` and ``sheet.png`` to a folder, each whole or not at all."""
    output.save_figures(result, folder / "result.json")
    images, captions = zip(*sheet, strict=True)
    text = json.dumps({key: value for key, value in result.items() if key != "sets"})
    output.save(output.sheet(images, captions, 1 + 2 * SHEET_VIEWS), folder / "sheet.png", text)


def card_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's card tells of the result: the strict figures of each set, and the digest of its split."""
    facts: dict[str, Any] = {}
    for name, part in result["sets"].items():
        facts |= {f"{name} PSNR": part["strict"]["psnr"], f"{name} SSIM": part["strict"]["ssim"]}
        facts[name] = {**part["strict"], "official": part["official"], "seen": part["seen"], "split": part["digest"]}
    return facts
