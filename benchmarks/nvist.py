"""What a scene of one picture costs, and what being quick changes: ``python benchmarks/nvist.py [--model NAME]``.

In one process and one run, rounds interleaved; median, fastest and slowest seconds:

- the published network with random weights, read from a folder, and one picture of 160x90: the field, in plain float32
  (attention that keeps its weights, norms and modulation one after another), in float32, and in bfloat16;
- a product of two matrices of 2048 x 2048 in either format, the machine's ceiling; the field's operations are counted;
- the model that is named (by default the embedded one), a toy: the field, one 128x128 view, exact and quick, and an
  orbit of 60 frames of 128x128; with the PSNR between the quick views of the orbit and exact ones.

Peak memory is that of another process which makes the field and sees it once. Views of the published size: field.py.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import Runs, gemm_peak, measure, peak
from torch import Tensor

from belvedere import kernels
from belvedere.apps.record import processor
from belvedere.apps.training_log import flop_counter
from belvedere.checkpoints.views import load_scene_model, open_scene_model, save_scene_model
from belvedere.data.toybox.views import ToyboxViews
from belvedere.kernels import reference
from belvedere.synthesis.camera_paths import orbit
from belvedere.synthesis.cameras import conditions, input_camera
from belvedere.synthesis.field import Field
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.render import occupancy_for_views, render_view

FRAMES, SIDE = 60, 128
RAY: dict[str, Any] = {"near": 0.4, "far": 2.4, "samples": 48}
PUBLISHED = ("published, plain", "published, float32", "published, bfloat16")
GEMM_SHAPES = ((2048, 2048, 2048),)


@contextmanager
def plain() -> Iterator[None]:
    """Let the network run on the plain forms of attention, norms and gates."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)

    names = ("modulate_norm", "gated_residual", "gated_residual_norm")
    forms = {"attend": attend} | {name: getattr(reference, name) for name in names}
    with ExitStack() as stack:
        for name, form in forms.items():
            stack.enter_context(mock.patch.object(kernels, name, form))
        yield


def save_published(folder: Path) -> None:
    """Write a network of the published size, of random weights."""
    torch.manual_seed(0)
    save_scene_model(NViST(), "float32", folder, {})


def published_run(name: str, folder: Path) -> Callable[[], Field]:
    """Return one of the ways ``PUBLISHED`` to make a field with the network in a folder."""
    network = load_scene_model(folder, "cpu", "bfloat16" if "bfloat16" in name else "float32")
    image, camera = torch.rand(1, 3, 160, 90), torch.tensor([[1.4, 1.2]])

    @torch.no_grad()
    def run() -> Field:
        with plain() if "plain" in name else nullcontext():
            return network(image, camera)

    return run


def model_runs(name: str) -> tuple[Runs, Callable[[], float]]:
    """Return the ways to see a toy with a model, and what tells the PSNR in dB of quick views against exact ones."""
    model = open_scene_model(name)
    network, config = model.network, model.network.config
    options = {"near": config.near, "far": config.far, "samples": config.samples}
    toy = ToyboxViews(tuple(config.image), seed=99)[0]["image"][None] / 2 + 0.5
    camera = input_camera((SIDE, SIDE), distance=model.distance, fov=model.fov)
    path = orbit(camera, FRAMES)

    @torch.no_grad()
    def build() -> Field:
        return network(toy, conditions([camera]))

    field = build()

    def turn(exact: bool = False) -> Tensor:
        occupancy = None if exact else occupancy_for_views(field)
        views = [render_view(field, side, **options, exact=exact, occupancy=occupancy) for side in path]
        return torch.stack([view.colour for view in views])

    runs: Runs = {
        "model, field": build,
        "model, view, exact": lambda: render_view(field, path[5], **options, exact=True),
        "model, view": lambda: render_view(field, path[5], **options),
        f"model, orbit of {FRAMES}": turn,
    }
    return runs, lambda: -10 * (turn() - turn(exact=True)).square().mean().log10().item()


def peak_memory(name: str, folder: Path) -> float:
    """Return the most MB that a process holds which runs one of ``PUBLISHED`` and sees the field."""
    command = [sys.executable, __file__, "--memory", name, "--model", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def print_peak(name: str, folder: Path) -> None:
    """Make a field of the published size, see it, and print the most MB that this process has held."""
    field = published_run(name, folder)()
    view = input_camera((160, 90), distance=1.4, fov=45.0)
    render_view(field, view, **RAY, exact="plain" in name)
    print(peak())


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nvist-toybox", help="embedded name or folder (default: nvist-toybox)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "nvist.json")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_peak(options.memory, Path(options.model))
        return
    seen, quality = model_runs(options.model)
    with tempfile.TemporaryDirectory() as folder:
        save_published(Path(folder) / "published")
        published: Runs = {name: published_run(name, Path(folder) / "published") for name in PUBLISHED}
        with flop_counter() as counter:
            published["published, plain"]()
        gflop = counter.get_total_flops() / 1e9
        seconds = measure(published | seen, options.repeats)
        peaks = {name: peak_memory(name, Path(folder) / "published") for name in published}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    rates = {name: gflop / seconds[name]["fastest"] for name in PUBLISHED}
    rates |= {f"product, {name}": gemm_peak(dtype, GEMM_SHAPES, 5) / 1e9 for name, dtype in dtypes.items()}
    result = {
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "model": options.model,
        "repeats": options.repeats,
        "seconds": seconds,
        "peak_mb": peaks,
        "gflop": gflop,
        "gflop_a_second": rates,
        "psnr_quick_and_exact": quality(),
    }
    for name, row in seconds.items():
        memory = f"{peaks[name]:6.0f} MB" if name in peaks else ""
        print(f"{name:24} {row['median']:8.3f} s  ({row['fastest']:.3f} to {row['slowest']:.3f}) {memory}")
    print(", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    print(f"PSNR between quick and exact views of the orbit: {result['psnr_quick_and_exact']:.1f} dB")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
