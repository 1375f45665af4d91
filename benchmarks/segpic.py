"""How long SegPIC's codec takes, part by part, at full width on a picture of 768x512: ``python benchmarks/segpic.py``.

In one process and one run, rounds interleaved; the table gives median, fastest and slowest seconds:

- encode and decode of one tile, and their parts: analysis, the entropy path in exact integers, the coder, synthesis;
- the same entropy path in float32, which no two machines compute alike;
- analysis and synthesis with weights as they are stored, not channels last (``kernels.layout.place``);
- the coder alone: 491,520 numbers over the 64 tables of y, ten calls each way, in symbols a second.

Weights are random (the network's work does not depend on them; the number of bits does). Peak memory is that of another
process which encodes and decodes the picture once.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import measure, peak
from torch import Tensor

from belvedere import SegPIC
from belvedere.apps.record import processor
from belvedere.compression import exact_tables
from belvedere.compression.codec import Codec
from belvedere.compression.entropy import CodingTables, Reader, Writer
from belvedere.compression.exact_tables import ExactTables
from belvedere.compression.official_tables import gaussian_tables
from belvedere.compression.regions import Grid
from belvedere.kernels.layout import place

HEIGHT, WIDTH = 512, 768
SYMBOLS, CALLS = 491_520, 10


def make(variant: str, placed: bool = True) -> Codec:
    """Return a codec of random weights, ``placed`` as ``load_codec`` puts it on a CPU, or with weights as stored."""
    torch.manual_seed(0)
    model = SegPIC.from_variant(variant).eval()
    tables = ExactTables.of(exact_tables.make(model), model.config)
    return Codec(place(model, torch.device("cpu")) if placed else model, tables, "00" * 32)


def picture() -> np.ndarray:
    """Return smooth noise, uint8 (h, w, 3)."""
    coarse = torch.rand(1, 3, HEIGHT // 16, WIDTH // 16, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1)
    return (fine * 255).byte().permute(1, 2, 0).numpy()


def codec_runs(codec: Codec) -> dict[str, Callable[[], Any]]:
    """Return what is timed of the codec, by name."""
    tiles, path, pixels, model = codec.tiles, codec.tiles.path, picture(), codec.model
    grid, rate = model.config.grid, codec.rate(0)
    analysis = tiles.analyse(pixels, grid)
    tile = tiles.write(analysis, rate)
    latent, codes = tiles.read(tile, (HEIGHT, WIDTH), grid)
    z = torch.zeros(1, model.config.hyper[-1], HEIGHT // 64, WIDTH // 64, dtype=torch.int64)
    second = torch.zeros_like(analysis.codes)

    def exact() -> Tensor:
        maps = path.hyper(z, path.prototypes(second))
        return path.latent(*maps, lambda i, mean, index: torch.zeros_like(index))

    @torch.inference_mode()
    def floats() -> Tensor:
        maps = model.hyper_synthesis(z.float(), model.prototypes2.decoder(second.float()), Grid(grid, [1]))
        return model.channel_context(*maps, lambda i, mean, scale: mean)

    return {
        "encode": lambda: tiles.write(tiles.analyse(pixels, grid), rate),
        "decode": lambda: tiles.synthesise(*tiles.read(tile, (HEIGHT, WIDTH), grid), rate, (HEIGHT, WIDTH)),
        "analysis": lambda: tiles.analyse(pixels, grid),
        "entropy path, exact": exact,
        "entropy path, float32": floats,
        "synthesis": lambda: tiles.synthesise(latent, codes, rate, (HEIGHT, WIDTH)),
    }


def as_stored(variant: str) -> dict[str, Callable[[], Any]]:
    """Return what the layout of weights bears on, with weights as they are stored."""
    runs = codec_runs(make(variant, placed=False))
    return {f"{name}, as stored": runs[name] for name in ("analysis", "synthesis")}


def coder_runs() -> dict[str, Callable[[], Any]]:
    """Return the coder alone, each way, on numbers as probable as their tables say."""
    tables = gaussian_tables()
    coding, draw = CodingTables(tables), np.random.default_rng(0)
    indices = draw.integers(0, 40, (CALLS, SYMBOLS // CALLS))
    scales = np.exp(np.linspace(np.log(0.11), np.log(256), 64))
    values = np.rint(draw.normal(0, 1, indices.shape) * scales[indices]).astype(np.int64)

    def write() -> bytes:
        writer = Writer()
        for numbers, table in zip(values, indices, strict=True):
            writer.write(numbers, table, coding)
        return writer.finish()

    data = write()

    def read() -> None:
        reader = Reader(data)
        for numbers, table in zip(values, indices, strict=True):
            assert (reader.read(table, coding) == numbers).all()
        reader.finish()

    return {"coder, writing": write, "coder, reading": read}


def peak_memory(variant: str) -> float:
    """Return the most MB that a process holds which encodes and decodes once, less those after its imports."""
    done = subprocess.run([sys.executable, __file__, "--variant", variant, "--memory"], check=True, capture_output=True)
    return float(done.stdout)


def print_peak(variant: str) -> None:
    """Encode and decode once and print the MB that were taken on top of the libraries."""
    before = peak()
    runs = codec_runs(make(variant))
    for name in ("encode", "decode"):
        runs[name]()
    print(peak() - before)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="SegPIC")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "segpic.json")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_peak(options.variant)
        return
    rows = measure(codec_runs(make(options.variant)) | as_stored(options.variant) | coder_runs(), options.repeats)
    result = {
        "variant": options.variant,
        "picture": f"{WIDTH}x{HEIGHT}",
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "repeats": options.repeats,
        "seconds": rows,
        "symbols_per_second": {name: SYMBOLS / rows[f"coder, {name}"]["median"] for name in ("writing", "reading")},
        "peak_mb": peak_memory(options.variant),
    }
    for name, row in rows.items():
        print(f"{name:24} {row['median']:8.3f} s  ({row['fastest']:.3f} to {row['slowest']:.3f})")
    print(f"coder: {result['symbols_per_second']} symbols/s; peak memory {result['peak_mb']:.0f} MB")
    stored = json.loads(options.out.read_text()) if options.out.is_file() else {}
    options.out.write_text(json.dumps(stored | {options.variant: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
