"""A scene as triangles: the surface where its density has a stated value, coloured as it is seen from outside.

Marching cubes (Lorensen and Cline, SIGGRAPH 1987) without holes (Lewiner et al., Journal of Graphics Tools, 2003).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.synthesis.field import MAX_NUMBERS, Field
from belvedere.synthesis.occupancy import density_nodes

USUAL_RESOLUTION = 128
"""Points along an axis at most, where nothing is said."""
HALF_OPAQUE = 4
"""Texels: a field that learned little is soft, and where a single one is half opaque its mesh has lost the thing."""
MAX_RESOLUTION = 384
"""Points along an axis; a mesh from so many takes about 1.5 GB."""
MAX_VERTICES = 2**22
CHUNK = 2**15
"""Vertices that are coloured at a time; one takes about 2 kB."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Closed surfaces of triangles, a colour at each vertex."""

    vertices: np.ndarray
    """(v, 3), float32: x y z in the scene's axes (x right, y down, z away from the input camera) and unit of length."""
    faces: np.ndarray
    """(f, 3), int32: vertices, counter-clockwise seen from outside."""
    colours: np.ndarray
    """(v, 3), float32, in [0, 1], sRGB."""

    def upright(self, pitch: float) -> "Mesh":
        """Return the mesh in axes whose y is the scene's vertical, where the input camera looks down by ``pitch``.

        In degrees; the other axes are turned with it, about the x axis. See ``camera_paths.orbit``.
        """
        cos, sin = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
        turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]], np.float32)
        return replace(self, vertices=self.vertices @ turn.T)

    def save(self, path: Path | str) -> None:
        """Write the mesh as .glb (glTF 2.0) or .ply, whole or not at all; raises ``InputError`` for another ending.

        Both have glTF's axes, y up and z towards the input camera: (x, y, z) becomes (x, -y, -z). A .glb holds colours
        in 16 bits, linear as glTF wants them (8 would show steps in the dark), and is not lit again
        (KHR_materials_unlit), so it needs no normals; a .ply holds 8-bit sRGB.
        """
        path, encoders = Path(path), {".glb": _to_glb, ".ply": _to_ply}
        if path.suffix.lower() not in encoders:
            raise InputError(f"{path}: cannot tell the kind of mesh; end the name with {' or '.join(encoders)}")
        content = encoders[path.suffix.lower()](self)
        with atomic_write(path) as stream:
            stream.write(content)


def opaque_density(field: Field) -> float:
    """Return the density at which ``HALF_OPAQUE`` texels in a row are 50 % opaque: ln 2 over their sides (Lambert)."""
    return math.log(2) * field.resolution / (HALF_OPAQUE * 2 * field.half_side)


@torch.no_grad()
def extract_mesh(
    field: Field, *, resolution: int | None = None, density: float | None = None, share: float = 0.05
) -> Mesh:
    """Return the surface of a field of one scene where its density is ``density``.

    ``resolution``: points along an axis at which density is known, 2 to ``MAX_RESOLUTION``; by default the centres of
    the field's texels and one beyond at each end, between which nothing but interpolation happens, and at most
    ``USUAL_RESOLUTION``. ``density``: above 0, by default that of ``opaque_density``. ``share``: what is less than this
    share of the largest connected solid, by volume, is left out; 0 keeps everything, 1 the largest alone. A vertex has
    the colour that the field shows along its inward normal. Where a solid reaches the end of the box it is closed
    there.

    Raises ``InputError`` for arguments out of range, when nothing is so dense, and for more than ``MAX_VERTICES``.
    """
    if field.scenes != 1:
        raise InputError(f"a field of {field.scenes} scenes: choose one of them with field.scene(i)")
    resolution = min(field.resolution + 2, USUAL_RESOLUTION) if resolution is None else resolution
    if not 2 <= resolution <= MAX_RESOLUTION:
        raise InputError(f"resolution {resolution} of a mesh: 2 to {MAX_RESOLUTION} allowed")
    density = opaque_density(field) if density is None else density
    if not 0 < density < math.inf or not 0 <= share <= 1:
        raise InputError(f"density {density}, share {share} of a mesh: above 0, and from 0 to 1")
    fine = _refined(field, resolution)
    grid = _closed(density_nodes(fine)[0].cpu().numpy())
    if not grid.max() > density:
        raise InputError(f"nothing is as dense as {density:.4g}: give a density below {grid.max():.4g} for a mesh")
    _keep_largest(grid, density, share)
    places, faces, normals = _march(grid, density)
    step = 2 * fine.half_side / resolution
    vertices = (places * step - fine.half_side - step / 2).astype(np.float32)
    return Mesh(vertices, faces, _colours(field, vertices, -normals))


def _refined(field: Field, resolution: int) -> Field:
    """Return the field in so many texels, the outer centres at the ends of what it interpolates.

    Planes and lines are interpolated each by itself, which is exact at the new centres: the density there is not
    changed but by rounding. It is known before its ReLU, so that surfaces are where they are between centres too.
    """
    r = field.resolution
    channels = sum(field.decoder.sizes[name] for name in ("density", "colour"))
    if 3 * channels * resolution**2 > MAX_NUMBERS:
        raise InputError(f"a mesh of {channels} channels at resolution {resolution} is too large: lower the resolution")
    mode = "constant" if field.padding == "zeros" else "replicate"
    planes, lines = field.planes, field.lines
    if planes is not None:
        ringed = F.pad(planes[0].float(), (1, 1, 1, 1), mode=mode)  # (3, c, r + 2, r + 2)
        planes = F.interpolate(ringed, (resolution,) * 2, mode="bilinear", align_corners=True)[None]
    if lines is not None:
        ringed = F.pad(lines[0].float(), (1, 1), mode=mode)  # (3, c, r + 2)
        lines = F.interpolate(ringed, resolution, mode="linear", align_corners=True)[None]
    half_side = field.half_side * (1 + 1 / r) * resolution / (resolution - 1)
    return replace(field, planes=planes, lines=lines, half_side=half_side, padding="zeros")


def _closed(grid: np.ndarray) -> np.ndarray:
    """Return the grid with nothing on its faces, which lie outside all of the field."""
    for axis in range(3):
        np.moveaxis(grid, axis, 0)[[0, -1]] = 0
    return grid


def _keep_largest(grid: np.ndarray, density: float, share: float) -> None:
    """Empty those solids of the grid that are smaller than a share of the largest.

    Solids are connected across corners too, so no cell of the grid has corners in two of them.
    """
    from skimage import measure

    solids = measure.label(grid > density, connectivity=3)
    sizes = np.bincount(solids.ravel())
    sizes[0] = 0
    small = sizes < share * sizes.max()
    small[0] = False
    if small.any():
        grid[small[solids]] = 0


def _march(grid: np.ndarray, density: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertices (v, 3), x y z in cells of the grid (z, y, x), faces (f, 3) and outward unit normals (v, 3)."""
    from skimage import measure

    inside = grid > density
    count = sum(int(np.count_nonzero(np.diff(inside, axis=axis))) for axis in range(3))  # one an edge that crosses
    if count > MAX_VERTICES:
        raise InputError(f"a mesh of {count} vertices, at most {MAX_VERTICES}: lower the resolution, or change density")
    vertices, faces, normals, _ = measure.marching_cubes(grid, density)
    return vertices[:, ::-1], faces, normals[:, ::-1]  # a mirror: clockwise becomes counter-clockwise


def _colours(field: Field, vertices: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the colours (v, 3) of points (v, 3) of a field seen along directions (v, 3)."""
    points, along = (torch.tensor(x.copy(), device=field.device).split(CHUNK) for x in (vertices, directions))
    parts = [field.colour(p[None], F.normalize(d, dim=-1)[None])[0] for p, d in zip(points, along, strict=True)]
    return torch.cat(parts).float().cpu().numpy()


def _to_gltf_axes(vertices: np.ndarray) -> np.ndarray:
    return vertices * np.array([1, -1, -1], vertices.dtype)


def _to_glb(mesh: Mesh) -> bytes:
    import trimesh
    from trimesh.exchange.gltf import export_glb

    linear = np.where(mesh.colours <= 0.04045, mesh.colours / 12.92, ((mesh.colours + 0.055) / 1.055) ** 2.4)
    opaque = np.ones_like(linear[:, :1])
    values = np.rint(np.concatenate((linear, opaque), 1) * 65535).astype(np.uint16)
    scene = trimesh.Trimesh(
        _to_gltf_axes(mesh.vertices), mesh.faces, vertex_attributes={"_colour": values}, process=False
    )
    return export_glb(trimesh.Scene(scene), include_normals=False, tree_postprocessor=_unlit)


def _unlit(tree: dict[str, Any]) -> None:
    """Make the attribute of a glTF tree its colours (trimesh's own are of 8 bits), shown as they are."""
    primitive = tree["meshes"][0]["primitives"][0]
    accessor = primitive["attributes"].pop("_colour")
    tree["accessors"][accessor]["normalized"] = True
    primitive["attributes"]["COLOR_0"], primitive["material"] = accessor, 0
    unlit = "KHR_materials_unlit"
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0}, "extensions": {unlit: {}}}]
    tree["extensionsUsed"] = [unlit]


def _to_ply(mesh: Mesh) -> bytes:
    import trimesh
    from trimesh.exchange.ply import export_ply

    colours = np.rint(mesh.colours * 255).astype(np.uint8)
    return export_ply(
        trimesh.Trimesh(_to_gltf_axes(mesh.vertices), mesh.faces, vertex_colors=colours, process=False),
        vertex_normal=False,
    )
