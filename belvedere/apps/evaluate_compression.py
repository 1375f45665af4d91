"""Measuring codecs on one folder of pictures: rate, quality and time of each, BD-rates between them, table and plot."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from belvedere.apps import output, record, work
from belvedere.apps.peers import versions
from belvedere.compression.codec import Codec, decode, encode
from belvedere.compression.rate_distortion import SMALLEST, Point, bd_rate, mean_point, ms_ssim, psnr
from belvedere.data.folders import SUFFIXES
from belvedere.data.images import open_image, to_tensor
from belvedere.errors import InputError
from belvedere.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("psnr", "ms_ssim")
PUBLISHED = Path(__file__).with_name("published_kodak.json")
KODAK = {f"kodim{i:02d}" for i in range(1, 25)}

Curves = dict[str, list[dict[str, Any]]]
"""The points of each codec, with ``bpp`` and one or both of ``MEASURES``."""


class Coder(Protocol):
    """What can be measured: a name that tells its settings, and a sweep of qualities."""

    @property
    def name(self) -> str: ...
    @property
    def qualities(self) -> Sequence[float]: ...
    def encode(self, image: Image.Image, quality: float) -> bytes:
        """Return the whole file of an RGB picture."""

    def decode(self, content: bytes) -> Image.Image:
        """Return the RGB picture in a file."""


@dataclass(frozen=True)
class Learned:
    """A codec of ours as a ``Coder``."""

    name: str
    qualities: Sequence[float]
    codec: Codec

    def encode(self, image: Image.Image, quality: float) -> bytes:
        """Return the ``.bvd`` file of an RGB picture."""
        return encode(image, self.codec, quality=quality)

    def decode(self, content: bytes) -> Image.Image:
        """Return the picture in a ``.bvd`` file."""
        return decode(content, self.codec)


def pictures_in(folder: Path, count: int | None = None) -> list[Path]:
    """Return the PNG, JPEG and WebP files of a folder by name, the first ``count`` of them."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with pictures in it")
    if count is not None and count < 1:
        raise InputError(f"cannot measure {count} pictures: give 1 or more")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no pictures: it needs files ending in {', '.join(sorted(SUFFIXES))}")
    return found[:count]


def evaluate_compression(
    coders: Sequence[Coder],
    pictures: Sequence[Path],
    *,
    together: Sequence[str] = (),
    progress: work.Progress | None = None,
) -> dict[str, Any]:
    """Measure every coder at every one of its qualities on the same pictures; the result is plain JSON.

    ``together``: names of coders whose points form one curve, such as networks of one rate each.

    ``curves``: means over the pictures, as published; the points of several coders come by rising rate and name theirs.
    ``bd_rate``: for each measure, how many percent more bits the first named curve needs than the second, null with the
    reason in ``notes`` where that cannot be said; MS-SSIM is compared in dB, -10 log10(1 - mean). Pictures called as
    those of Kodak are also compared with ``published`` curves. ``rows``: every single measurement. A lossless PSNR is
    null, and so is a mean with one, whose picture ``notes`` name. What cannot be measured raises ``InputError`` first.
    """
    _check(coders, pictures)
    steps = [(coder, quality) for coder in coders for quality in coder.qualities]
    points: list[list[Point]] = [[] for _ in steps]
    for i, path in enumerate(pictures):
        image = Image.fromarray(np.asarray(open_image(path)))  # pixels alone: no coder pays for metadata
        for j, (coder, quality) in enumerate(steps):
            points[j].append(measure(coder, quality, image))
            if progress:
                progress(i + (j + 1) / len(steps), len(pictures))
    curves = _curves(steps, points, together)
    rows = [
        {"coder": coder.name, "quality": quality, "picture": path.name, **_plain(point)}
        for (coder, quality), measured in zip(steps, points, strict=True)
        for path, point in zip(pictures, measured, strict=True)
    ]
    others = published(pictures)
    rates, notes = bd_rates({**curves, **others["curves"]})
    notes += _lossless(rows, len(pictures))
    names = [path.name for path in pictures]
    return {"pictures": names, "curves": curves, "published": others, "bd_rate": rates, "notes": notes, "rows": rows}


def _lossless(rows: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Return which of ``count`` pictures alone make the mean PSNR of a point infinite."""
    found: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        if row["psnr"] is None:
            found.setdefault((row["coder"], row["quality"]), []).append(row["picture"])
    return [
        f"{coder}, quality {quality:g}: no mean PSNR, since {', '.join(names[:3])} came back lossless: leave it out"
        for (coder, quality), names in found.items()
        if len(names) < count
    ]


def _curves(steps: Sequence[tuple[Coder, float]], points: Sequence[Sequence[Point]], together: Sequence[str]) -> Curves:
    one = f"{together[0]} and {len(together) - 1} more" if together else ""
    curves: Curves = {}
    for (coder, quality), measured in zip(steps, points, strict=True):
        point = {"quality": quality, **_plain(mean_point(measured))}
        if coder.name in together:
            curves.setdefault(one, []).append({"coder": coder.name, **point})
        else:
            curves.setdefault(coder.name, []).append(point)
    if together:
        curves[one].sort(key=lambda point: point["bpp"])
    return curves


def _check(coders: Sequence[Coder], pictures: Sequence[Path]) -> None:
    names = [coder.name for coder in coders]
    if not coders or not pictures:
        raise InputError(f"{len(coders)} codecs and {len(pictures)} pictures: give one or more of both")
    if len(set(names)) < len(names):
        raise InputError(f"codecs {', '.join(names)}: give each a name of its own")
    for path in pictures:
        width, height = open_image(path).size
        if min(width, height) < SMALLEST:
            raise InputError(f"{path} has {width} x {height} pixels, less than {SMALLEST} a side: leave it out")


def measure(coder: Coder, quality: float, image: Image.Image) -> Point:
    """Return what a coder reaches on one RGB picture: all bytes of its file, and the 8-bit picture decoded from it."""
    began = time.perf_counter()
    content = coder.encode(image, quality)
    encoded = time.perf_counter()
    decoded = coder.decode(content)
    ended = time.perf_counter()
    a, b = to_tensor(image), to_tensor(decoded)
    similarity = ms_ssim(a[None].float() / 255, b[None].float() / 255).item()
    bpp = 8 * len(content) / (image.width * image.height)
    return Point(bpp, psnr(a, b), similarity, encoded - began, ended - encoded)


def circumstances(codecs: Mapping[str, Codec]) -> dict[str, Any]:
    """Return what figures depend on: the digest of each codec as its files have it, the machine, and the formats."""
    device = next(iter(codecs.values())).model.device
    return {
        "models": {name: codec.digest.hex() for name, codec in codecs.items()},
        "machine": asdict(record.this_machine(device)),
        "versions": versions(),
    }


def _plain(point: Point) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(point).items()}


def published(pictures: Sequence[Path]) -> dict[str, Any]:
    """Return ``curves`` and ``source`` of the published results on these pictures; none unless they are Kodak's 24."""
    if len(pictures) != len(KODAK) or {path.stem.lower() for path in pictures} != KODAK:
        return {"curves": {}, "source": {}}
    stored = json.loads(PUBLISHED.read_text())
    curves = {name: [{"bpp": b, "psnr": p} for b, p in points] for name, points in stored["curves"].items()}
    return {"curves": curves, "source": stored["source"]}


def bd_rates(curves: Curves) -> tuple[dict[str, dict[str, dict[str, float | None]]], list[str]]:
    """Return the BD-rate in percent of each curve against each other, by measure, and why some are missing."""
    rates: dict[str, dict[str, dict[str, float | None]]] = {}
    notes = []
    for name in MEASURES:
        series = {coder: _series(points, name) for coder, points in curves.items() if all(name in p for p in points)}
        rates[name] = {coder: {} for coder in series}
        for a, b in ((a, b) for a in series for b in series if a != b):
            try:
                rates[name][a][b] = bd_rate(*series[a], *series[b])
            except InputError as error:
                rates[name][a][b] = None
                notes.append(f"{a} against {b}, {name}: {error}")
    return rates, notes


def _series(points: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return the rates and the qualities in dB of a curve."""
    values = [_decibels(point[name]) if name == "ms_ssim" else point[name] for point in points]
    return [point["bpp"] for point in points], [math.inf if value is None else value for value in values]


def _decibels(similarity: float) -> float:
    return -10 * math.log10(1 - similarity) if similarity < 1 else math.inf


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text: every mean point, then the BD-rates, row against column."""
    head = ("quality", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s")
    lines = [_title(result)]
    for name, points in result["curves"].items():
        lines += ["", name, "".join(f"{title:>10}" for title in head)]
        for p in points:
            values = (p["bpp"], p["psnr"], p["ms_ssim"], p["encode_seconds"], p["decode_seconds"])
            figures = (f"{'inf' if v is None else format(v, '.4f'):>10}" for v in values)
            lines.append(f"{p['quality']:>10g}" + "".join(figures) + (f"  {p['coder']}" if "coder" in p else ""))
    for measured, rates in result["bd_rate"].items():
        lines += ["", f"BD-rate by {measured}: percent more bits that the row needs than the column"]
        width = max(map(len, rates), default=0) + 4
        lines.append(" " * width + "".join(f"{f'[{i}]':>9}" for i in range(1, len(rates) + 1)))
        for i, (name, row) in enumerate(rates.items(), 1):
            cells = (row.get(other) for other in rates)
            lines.append(
                f"{f'[{i}] {name}':{width}}" + "".join(f"{'-' if c is None else format(c, '+.2f'):>9}" for c in cells)
            )
    return "\n".join([*lines, *(["", *result["notes"]] if result["notes"] else [])])


def _title(result: Mapping[str, Any]) -> str:
    count = len(result["pictures"])
    return f"means of {count} picture{'s' * (count > 1)}"


def new_figure() -> "Figure":
    """Return an empty figure; ``InputError`` without matplotlib, so call it before long work that ends in a plot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'belvedere[evaluate]'") from error
    return Figure(figsize=(12, 5), layout="constrained")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw PSNR and MS-SSIM in dB over bits per pixel into a file, whole or not at all: PNG or SVG by its ending."""
    figure = new_figure()
    curves = {**result["curves"], **result["published"]["curves"]}
    panels = zip(figure.subplots(1, 2), MEASURES, ("PSNR (dB)", "MS-SSIM (dB)"), strict=True)
    for axes, measured, title in panels:
        for i, (name, points) in enumerate(curves.items()):
            if all(measured in point for point in points):
                style = "o-" if name in result["curves"] else "s--"
                axes.plot(*_series(points, measured), style, color=f"C{i}", label=name, markersize=4)
        axes.set(xlabel="bits per pixel of the whole file", ylabel=title)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(_title(result))
    with output.writing(path), atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def save(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``result.json`` and the plot as PNG and SVG to a folder, each whole or not at all; return their paths."""
    paths = [folder / name for name in ("result.json", "plot.png", "plot.svg")]
    output.save_figures(result, paths[0])
    for path in paths[1:]:
        plot(result, path)
    return paths
