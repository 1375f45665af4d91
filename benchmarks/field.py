"""How long it takes to see a radiance field, and to learn from what is seen: ``python benchmarks/field.py``.

A field of the official sizes (48 texels, 8 + 24 channels), 160x90 pixels of 48 samples. In one process and one run,
rounds interleaved; the table gives median, fastest and slowest seconds:

- a view of the plain form (all points at once, ``grid_sample``, density and colour of every point, as published), of
  our exact one, and of the default one, which skips what cannot be seen;
- a training step, forward and backward, of 1,024 rays: plain, and ours;
- the features of 65,536 points, forward and backward: ``grid_sample``, and ours.

Two scenes of random toys in space that is mostly empty: "solid", of blocks that are opaque within two samples, and
"soft", of wide blobs in haze, where many samples of each ray are seen. Peak memory is that of other processes.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import measure, peak
from torch import Tensor

from belvedere import kernels
from belvedere.apps.record import processor
from belvedere.data.cameras import Camera
from belvedere.kernels import reference
from belvedere.synthesis.field import Field, FieldDecoder
from belvedere.synthesis.render import Rendered, render_rays, render_view

RESOLUTION, HEIGHT, WIDTH, TRAINING_RAYS, POINTS = 48, 160, 90, 1024, 65_536
RAY: dict[str, Any] = {"near": 0.4, "far": 2.4, "samples": 48}
SCENES = ("solid", "soft")


def make(scene: str) -> Field:
    """Return a scene of 21 toys, each a product of three profiles, one for each channel of density but the last."""
    draw = torch.Generator().manual_seed(0)
    r = RESOLUTION
    x = (torch.arange(r) + 0.5) / r * 2 - 1
    middle, side = (
        torch.rand(3, 3, 7, 1, generator=draw) * 0.8 - 0.4,
        0.08 + 0.12 * torch.rand(3, 3, 7, 1, generator=draw),
    )
    distance = (x - middle).abs() / side  # (axis, plane, c, r)
    profile = ((1.5 - distance) * 4).clamp(0, 1) if scene == "solid" else torch.exp(-(distance**2) / 2)
    planes = (120 if scene == "solid" else 40) * profile[0, ..., None] * profile[1, ..., None, :]
    haze = torch.full((3, 1, r, r), -1.0) if scene == "solid" else torch.randn(3, 1, r, r, generator=draw)
    painted = F.avg_pool2d(torch.randn(3, 24, r, r, generator=draw), 7, 1, 3) * 7
    planes = torch.cat((planes, haze, painted), 1)  # (3, c, r, r)
    lines = torch.cat((profile[2], torch.ones(3, 1, r), torch.randn(3, 24, r, generator=draw)), 1)  # (3, c, r)
    torch.manual_seed(0)
    decoder = FieldDecoder()
    for parameter in decoder.parameters():
        parameter.data *= 2
    return Field(planes[None], lines[None], decoder)


def camera() -> Camera:
    """Return a camera that has the whole box in view."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -1.4
    return Camera(pose, (HEIGHT * 0.9,) * 2, (WIDTH / 2, HEIGHT / 2), (HEIGHT, WIDTH))


def plain(field: Field, origins: Tensor, directions: Tensor) -> Tensor:
    """Return the colours (n, 3) of rays (n, 3), by asking everything at every point, as published."""
    n, s, dense = len(origins), RAY["samples"], field.decoder.sizes["density"]
    edges = torch.linspace(RAY["near"], RAY["far"], s + 1)
    points = origins[:, None] + directions[:, None] * ((edges[1:] + edges[:-1]) / 2)[:, None]  # (n, s, 3)
    features = reference.sample_grid(points.view(1, -1, 3) / field.half_side, field.planes, field.lines)[0]
    density = F.relu(features[..., :dense].sum((1, 2))).view(n, s)
    along = directions.unsqueeze(1).expand(n, s, 3).reshape(-1, 3)
    colour = field.decoder.logits(features[..., dense:], along).sigmoid().view(n, s, 3)
    alpha = 1 - torch.exp(-density * edges.diff())
    reaching = torch.cumprod(torch.cat((torch.ones(n, 1), 1 - alpha + 1e-10), -1), -1)[:, :-1]
    return ((alpha * reaching).unsqueeze(-1) * colour).sum(1)


def view_runs(field: Field) -> dict[str, Callable[[], Any]]:
    """Return the ways to see a field, by name."""
    seen_by = camera()
    origins, directions = (x.reshape(-1, 3) for x in seen_by.rays())
    return {
        "view, plain": torch.no_grad()(lambda: plain(field, origins, directions)),
        "view, exact": lambda: render_view(field, seen_by, **RAY, exact=True),
        "view": lambda: render_view(field, seen_by, **RAY),
    }


def training_runs(field: Field) -> dict[str, Callable[[], Any]]:
    """Return a step of training in two forms; either returns gradients."""
    index = torch.randperm(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(0))[:TRAINING_RAYS]
    origins, directions = camera().rays(index)
    planes, lines = field.planes.clone().requires_grad_(), field.lines.clone().requires_grad_()
    learned = Field(planes, lines, field.decoder)
    leaves = (planes, lines, *field.decoder.parameters())
    forms = {
        "step, plain": lambda: plain(learned, origins, directions),
        "step": lambda: render_rays(learned, origins[None], directions[None], **RAY).colour,
    }
    return {
        name: lambda form=form: torch.autograd.grad((form() - 0.5).square().mean(), leaves)
        for name, form in forms.items()
    }


def sampling_runs(field: Field) -> dict[str, Callable[[], Any]]:
    """Return features of points and their gradients, in two forms."""
    points = torch.rand(1, POINTS, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grids = field.planes.clone().requires_grad_(), field.lines.clone().requires_grad_()
    forms = {"features, grid_sample": reference.sample_grid, "features": kernels.sample_grid}
    return {
        name: lambda form=form: torch.autograd.grad(form(points, *grids).square().sum(), grids)
        for name, form in forms.items()
    }


def differences(field: Field) -> dict[str, float]:
    """Return how far the forms lie apart: of views in PSNR and at most, of gradients relative to their norm."""
    shown = {name: run() for name, run in view_runs(field).items()}
    colour = {name: x.colour.flatten(0, 1) if isinstance(x, Rendered) else x for name, x in shown.items()}
    error = colour["view"] - colour["view, plain"]
    steps = training_runs(field)
    pairs = zip(steps["step"](), steps["step, plain"](), strict=True)
    return {
        "view, PSNR in dB": -10 * error.square().mean().log10().item(),
        "view, largest": error.abs().max().item(),
        "exact view, largest": (colour["view, exact"] - colour["view, plain"]).abs().max().item(),
        "gradients, largest relative": max(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs),
        "mean opacity": shown["view"].opacity.mean().item(),
    }


def peak_memory(scene: str, run: str) -> float:
    """Return the most MB that a process holds which sees the scene once, on top of the libraries."""
    command = [sys.executable, __file__, "--memory", scene, run]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def print_peak(scene: str, run: str) -> None:
    """See the scene once and print the MB that were taken for it."""
    seen = view_runs(make(scene))[run]
    before = peak()
    seen()
    print(peak() - before)


def report(scene: str, repeats: int) -> dict[str, Any]:
    """Measure one scene and print it."""
    field = make(scene)
    seconds = measure(view_runs(field) | training_runs(field) | sampling_runs(field), repeats)
    peaks = {run: peak_memory(scene, run) for run in view_runs(field)}
    result = {"seconds": seconds, "peak_mb": peaks, "differences": differences(field)}
    for name, row in seconds.items():
        memory = f"{peaks[name]:6.0f} MB" if name in peaks else ""
        print(f"{scene:6} {name:24} {row['median']:8.3f} s  ({row['fastest']:.3f} to {row['slowest']:.3f}) {memory}")
    for name, value in result["differences"].items():
        print(f"{scene:6} {name:32} {value:.3g}")
    return result


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "field.json")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_peak(*options.memory)
        return
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"picture": f"{HEIGHT}x{WIDTH}", "samples": RAY["samples"], "machine": machine, "repeats": options.repeats}
    scenes = {scene: report(scene, options.repeats) for scene in SCENES}
    options.out.write_text(json.dumps(result | scenes, indent=2) + "\n")


if __name__ == "__main__":
    main()
