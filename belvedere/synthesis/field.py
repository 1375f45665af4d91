"""A radiance field in a factored volume: density and colour at any point, of a batch of scenes.

Three forms of the volume: "vector_matrix", planes times lines (TensoRF, Chen et al., arXiv 2203.09517, equation (5)),
which is that of NViST (arXiv 2312.08568); "triplane", the planes alone (Chan et al., arXiv 2112.07945); "cp", the
product of three lines (the CP decomposition of TensoRF, equation (3)).

On disk it is one safetensors file: ``planes``, ``lines``, ``background``, the decoder's weights as ``decoder.*``, and
JSON as metadata.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from belvedere import kernels
from belvedere.errors import InputError
from belvedere.files import atomic_write

FORMS = ("vector_matrix", "triplane", "cp")
PADDINGS = ("zeros", "border")
MAX_SIZES = {"density": 512, "colour": 512, "hidden": 1024, "frequencies": 16}
"""Of a decoder."""
MAX_CHANNELS, MAX_RESOLUTION, MAX_SCENES = 512, 1024, 64
"""Of the volumes in a file: density and colour together, texels along an axis, scenes."""
MAX_NUMBERS = 2**28
"""In a file: 1 GiB in float32."""
MAX_METADATA = 2**16
"""Characters of a file's JSON."""


class FieldDecoder(nn.Module):
    """Features of the volume at a point -> density and colour there.

    ``form``: of the volume. ``density``, ``colour``: channels of each plane and line for either. ``hidden``: width of
    the colour network. ``frequencies``: of the direction's encoding. Raises ``InputError`` for sizes out of range.
    """

    def __init__(
        self,
        *,
        form: str = "vector_matrix",
        density: int = 8,
        colour: int = 24,
        hidden: int = 64,
        frequencies: int = 4,
    ):
        super().__init__()
        self.form = form
        self.sizes = {"density": density, "colour": colour, "hidden": hidden, "frequencies": frequencies}
        _check_decoder(form, self.sizes)
        if form == "triplane":
            self.density_out = nn.Linear(3 * density, 1)
        self.colour_in = nn.Linear(colour if form == "cp" else 3 * colour, hidden)
        encoded = 6 * frequencies + 3
        self.colour_mlp = nn.Sequential(nn.Linear(hidden + encoded, hidden), nn.GELU(), nn.Linear(hidden, 3))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FieldDecoder":
        """Cast or move, but never below float32, which points and rays are in."""

        def wide(x: Tensor) -> Tensor:
            y = fn(x)
            return y if y.dtype not in (torch.float16, torch.bfloat16) else x.to(y.device, torch.float32)

        return super()._apply(wide, recurse)

    def weights(self) -> kernels.RayDecoder:
        """Return what ``kernels.render_factored`` decodes by, as ``density`` and ``logits`` do."""
        density = self.density_out.parameters() if self.form == "triplane" else ()
        return kernels.RayDecoder(*self.colour_in.parameters(), *self.colour_mlp.parameters(), *density)

    def density(self, features: Tensor) -> Tensor:
        """Return the density (...), at least 0, of the features (..., 3, c) of the density channels."""
        if self.form == "triplane":
            return F.relu(self.density_out(features.flatten(-2)).squeeze(-1))
        return F.relu(features.prod(-2).sum(-1) if self.form == "cp" else features.sum((-2, -1)))

    def logits(self, features: Tensor, directions: Tensor) -> Tensor:
        """Return the colour (..., 3) before the sigmoid, of the features (..., 3, c) of the colour channels.

        ``directions`` (..., 3) are of unit length and run along the ray.
        """
        x = features.prod(-2) if self.form == "cp" else features.flatten(-2)
        hidden = F.gelu(self.colour_in(F.gelu(x)))
        encoded = encode_directions(directions, self.sizes["frequencies"])
        return self.colour_mlp(torch.cat((hidden, encoded.to(hidden.dtype)), -1))


def _check_decoder(form: str, sizes: Mapping[str, object]) -> None:
    if form not in FORMS:
        raise InputError(f"form {form!r} of a field: choose from {', '.join(FORMS)}")
    for name, largest in MAX_SIZES.items():
        size, least = sizes[name], int(name != "frequencies")
        if type(size) is not int or not least <= size <= largest:
            raise InputError(f"{name} {size!r} of a field: must be a whole number from {least} to {largest}")


def encode_directions(directions: Tensor, frequencies: int) -> Tensor:
    """Return sines, cosines and the directions themselves: (..., 3) -> (..., 6 f + 3).

    The angles are d 2^k, without pi, for each axis in turn k = 0, ..., f - 1.
    """
    octaves = 2.0 ** torch.arange(frequencies, dtype=torch.float32, device=directions.device)
    angles = (directions[..., None] * octaves).flatten(-2)  # (..., 3 f)
    return torch.cat((angles.sin(), angles.cos(), directions), -1)


@dataclass(frozen=True, eq=False)
class Field:
    """The volumes of b scenes and what decodes them: called with points and directions, density and colour there.

    Raises ``InputError`` where form, shapes or numbers do not fit together.
    """

    planes: Tensor | None
    """(b, 3, c, r, r), density's channels first; rows by columns are yx, xz and zy. None for "cp"."""
    lines: Tensor | None
    """(b, 3, c, r), along z, y and x. None for "triplane"."""
    decoder: FieldDecoder
    half_side: float = 0.8
    """The box is [-half_side, half_side]^3 in the scene's unit of length."""
    padding: str = "zeros"
    """What the volume holds outside the box: "zeros", reached half a texel outside, or "border", the nearest texel."""
    background: Tensor | None = None
    """(b, 3) in [0, 1], the colour behind everything; None is black."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a file tells, as JSON can: near, far, ..."""

    def __post_init__(self) -> None:
        form, sizes = self.decoder.form, self.decoder.sizes
        absent = {"triplane": "lines", "cp": "planes"}.get(form)
        grids = {"planes": self.planes, "lines": self.lines}
        if any((grid is None) != (name == absent) for name, grid in grids.items()):
            raise InputError(
                f"a field of form {form} has {'both planes and lines' if absent is None else f'no {absent}'}"
            )
        c, r = sizes["density"] + sizes["colour"], self.resolution
        for name, shape in (("planes", (self.scenes, 3, c, r, r)), ("lines", (self.scenes, 3, c, r))):
            grid = grids[name]
            if grid is not None and grid.shape != shape:
                raise InputError(f"{name} {tuple(grid.shape)} of a field: {shape} goes with the rest of it")
        if self.background is not None and self.background.shape != (self.scenes, 3):
            raise InputError(f"background {tuple(self.background.shape)} of a field: must be ({self.scenes}, 3)")
        if self.padding not in PADDINGS:
            raise InputError(f"padding {self.padding!r} of a field: choose {' or '.join(PADDINGS)}")
        if not 0 < self.half_side < math.inf:
            raise InputError(f"half_side {self.half_side} of a field: must be above 0")

    @property
    def scenes(self) -> int:
        """How many there are, b."""
        return len(self._grid)

    @property
    def resolution(self) -> int:
        """Texels along an axis, r."""
        return self._grid.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the volumes are."""
        return self._grid.device

    @property
    def _grid(self) -> Tensor:
        grid = self.lines if self.planes is None else self.planes
        assert grid is not None  # __post_init__ has seen to it
        return grid

    def scene(self, i: int) -> "Field":
        """Return scene ``i`` alone; nothing is copied."""
        parts = (self.planes, self.lines, self.background)
        planes, lines, background = (None if part is None else part[i : i + 1] for part in parts)
        return replace(self, planes=planes, lines=lines, background=background)

    def to(self, device: torch.device | str) -> "Field":
        """Return the field on a device, in float32; its decoder moves there."""
        parts = (self.planes, self.lines, self.background)
        planes, lines, background = (None if part is None else part.float().to(device) for part in parts)
        return replace(self, planes=planes, lines=lines, background=background, decoder=self.decoder.to(device))

    def density(self, points: Tensor) -> Tensor:
        """Return the density (b, n) at ``points`` (b, n, 3): per unit of length, 0 or above."""
        return self.decoder.density(self._features(points, slice(None, self.decoder.sizes["density"])))

    def colour(self, points: Tensor, directions: Tensor) -> Tensor:
        """Return the colour (b, n, 3) in [0, 1] at ``points`` (b, n, 3) seen along unit ``directions`` (b, n, 3)."""
        features = self._features(points, slice(self.decoder.sizes["density"], None))
        return self.decoder.logits(features, directions).sigmoid()

    def __call__(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return density and colour; see ``density`` and ``colour``."""
        return self.density(points), self.colour(points, directions)

    def _features(self, points: Tensor, channels: slice) -> Tensor:
        planes, lines = (None if grid is None else grid[:, :, channels] for grid in (self.planes, self.lines))
        return kernels.sample_grid(points / self.half_side, planes, lines, padding=self.padding)

    def save(self, path: Path | str) -> None:
        """Write the field to a safetensors file, whole or not at all, in the dtypes it has.

        Raises ``InputError`` for facts that are not JSON or too long.
        """
        parts = {"planes": self.planes, "lines": self.lines, "background": self.background}
        grids = {name: part for name, part in parts.items() if part is not None}
        weights = {f"decoder.{name}": weight for name, weight in self.decoder.state_dict().items()}
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in (grids | weights).items()
        }
        about = {"form": self.decoder.form, **self.decoder.sizes}
        about |= {"half_side": float(self.half_side), "padding": self.padding, "facts": dict(self.facts)}
        try:
            text = json.dumps(about, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"facts of a field must be plain JSON: {error}") from error
        if len(text) > MAX_METADATA:
            raise InputError(f"facts of a field: {len(text)} characters, at most {MAX_METADATA}")
        with atomic_write(Path(path)) as stream:
            stream.write(save(tensors, {"field": text}))

    @classmethod
    def load(cls, path: Path | str) -> "Field":
        """Return the field of a file, on the CPU. Sizes are checked before memory is taken.

        Raises ``InputError`` for a file that is missing, damaged, of another kind, or larger than the limits above.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no scene at {path}; check the path")
        try:
            with safe_open(path, framework="pt") as file:
                about = _read_about(file.metadata(), path.name)
                with torch.device("meta"):
                    decoder = FieldDecoder(**{name: about.pop(name) for name in ("form", *MAX_SIZES)})
                names = set(file.keys())
                _check_tensors({name: file.get_slice(name) for name in names}, decoder, path.name)
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise InputError(f"scene {path.name} is damaged or no scene; save it again") from error
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise InputError(f"scene {path.name} holds NaN or infinity; make it again")
        about |= {name: tensors.pop(name, None) for name in ("planes", "lines", "background")}
        weights = {name.removeprefix("decoder."): tensor.float() for name, tensor in tensors.items()}
        decoder.load_state_dict(weights, assign=True)
        return cls(decoder=decoder, **about)


def _read_about(metadata: Mapping[str, str] | None, name: str) -> dict[str, Any]:
    """Return the keywords of decoder and field that a file's metadata give; the decoder checks its own."""
    text = (metadata or {}).get("field", "")
    kinds = {"form": str, **dict.fromkeys(MAX_SIZES, int), "half_side": float, "padding": str, "facts": dict}
    try:
        about = json.loads(text) if len(text) <= MAX_METADATA else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or {key: type(value) for key, value in about.items()} != kinds:
        raise InputError(
            f"{name} is no scene: its metadata do not describe a field; choose a file that Belvedere saved"
        )
    return about


def _check_tensors(slices: Mapping[str, Any], decoder: FieldDecoder, name: str) -> None:
    """Refuse tensors that are not those of such a field, or too large, by the file's header alone."""
    shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    grid = shapes.get("lines" if decoder.form == "cp" else "planes") or (0,)
    b, r = grid[0], grid[-1]
    c = decoder.sizes["density"] + decoder.sizes["colour"]
    expected = {f"decoder.{key}": tuple(weight.shape) for key, weight in decoder.state_dict().items()}
    expected |= {"planes": (b, 3, c, r, r)} if decoder.form != "cp" else {}
    expected |= {"lines": (b, 3, c, r)} if decoder.form != "triplane" else {}
    expected |= {"background": (b, 3)} if "background" in shapes else {}
    if shapes != expected:
        raise InputError(f"{name}: its tensors are not those of a field of form {decoder.form}; save it again")
    numbers = sum(math.prod(shape) for shape in shapes.values())
    if c > MAX_CHANNELS or not 0 < r <= MAX_RESOLUTION or not 0 < b <= MAX_SCENES or numbers > MAX_NUMBERS:
        limits = f"{MAX_SCENES} scenes, {MAX_CHANNELS} channels, {MAX_RESOLUTION} texels, {MAX_NUMBERS} numbers"
        raise InputError(f"{name}: {b} scenes, {c} channels, {r} texels a side, {numbers} numbers: at most {limits}")
    if any(part.get_dtype() not in ("F32", "F16", "BF16") for part in slices.values()):
        raise InputError(f"{name}: holds numbers of another kind than float32, float16 and bfloat16; save it again")
