"""Surfaces of fields that are known in closed form; what is written is read back by trimesh."""

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from belvedere.errors import InputError
from belvedere.synthesis import mesh as mesh_module
from belvedere.synthesis.field import FORMS, PADDINGS, Field, FieldDecoder
from belvedere.synthesis.mesh import Mesh, extract_mesh, opaque_density
from tests.synthesis.test_field import make

CENTRE = (0.1, -0.2, 0.05)
SIZES = {"density": 2, "colour": 6, "hidden": 16}


def field_of(planes: torch.Tensor, lines: torch.Tensor, **keywords: Any) -> Field:
    """Return a field of these planes (3, 2, r, r) and lines (3, 2, r) of density, and of colours that vary."""
    draw, r = torch.Generator().manual_seed(0), lines.shape[-1]
    planes = torch.cat((planes, torch.randn(3, 6, r, r, generator=draw)), 1)
    lines = torch.cat((lines, torch.randn(3, 6, r, generator=draw)), 1)
    torch.manual_seed(0)
    decoder = FieldDecoder(**SIZES)
    for parameter in decoder.parameters():
        parameter.data *= 3
    return Field(planes[None], lines[None], decoder, **keywords)


def ball(steepness: float, radius: float = 0.5, r: int = 32) -> Field:
    """Return a field of density ``steepness`` (radius^2 - d^2) at a distance d from the centre, as far as 0."""
    x = ((torch.arange(r) + 0.5) / r * 2 - 1) * 0.8
    squares = [(x - c) ** 2 for c in CENTRE]
    planes, lines = torch.zeros(3, 2, r, r), torch.ones(3, 2, r)
    planes[0, 0] = steepness * (radius**2 - squares[0] - squares[1][:, None])  # y, x
    planes[2, 0] = -steepness * squares[2][:, None]  # z, y
    return field_of(planes, lines)


def bumps(*places: tuple[float, float, float, float], r: int = 32) -> Field:
    """Return a field of two Gaussian bumps, 100 in the middle: x, y, z and the deviation of each."""
    at = ((torch.arange(r) + 0.5) / r * 2 - 1) * 0.8
    planes, lines = torch.zeros(3, 2, r, r), torch.zeros(3, 2, r)
    for channel, (*middle, deviation) in enumerate(places):
        x, y, z = (torch.exp(-(((at - m) / deviation) ** 2) / 2) for m in middle)
        planes[0, channel], lines[0, channel] = 100 * y[:, None] * x, z
    return field_of(planes, lines)


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.mark.parametrize("resolution", [24, 64])
@pytest.mark.parametrize("steepness", [100.0, 1e5])
def test_a_ball_is_a_sphere(resolution: int, steepness: float) -> None:
    field, density = ball(steepness), 10.0
    mesh = extract_mesh(field, resolution=resolution, density=density)
    radius = math.sqrt(0.25 - density / steepness)
    voxel = 1.6 * (1 + 1 / 32) / (resolution - 1)
    off = np.linalg.norm(mesh.vertices - np.array(CENTRE), axis=1) - radius
    assert np.abs(off).max() < voxel / 4  # half a voxel is what was promised
    body = solid(mesh)
    assert body.is_watertight and body.is_winding_consistent
    assert body.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.05)  # positive: faces look outwards
    assert (mesh.vertices.dtype, mesh.faces.dtype, mesh.colours.dtype) == (np.float32, np.int32, np.float32)


def test_colours_are_those_seen_from_outside() -> None:
    field = ball(100.0)
    mesh = extract_mesh(field, resolution=64)
    points = torch.from_numpy(mesh.vertices)
    outward = torch.nn.functional.normalize(points - torch.tensor(CENTRE), dim=-1)
    want, behind = (field.colour(points[None], sign * outward[None])[0].detach().numpy() for sign in (-1, 1))
    assert np.abs(mesh.colours - want).mean() < 0.02 < 0.1 < np.abs(mesh.colours - behind).mean()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_surfaces_have_the_density(form: str, padding: str) -> None:
    field = make(form, b=1, r=5, seed=3, padding=padding)
    density = 0.3 * field.density(torch.rand(1, 4000, 3) * 1.6 - 0.8).max().item()
    mesh = extract_mesh(field, resolution=100, density=density, share=0.0)
    inside = np.abs(mesh.vertices).max(1) < 0.8
    assert inside.sum() > 1000 and solid(mesh).is_watertight
    found = field.density(torch.from_numpy(mesh.vertices[inside])[None])[0].detach()
    off = (found / density - 1).abs()
    assert off.mean() < 1e-3 and off.max() < 0.15


def test_the_default_density_makes_a_texel_half_opaque() -> None:
    field = ball(100.0)
    assert 1 - math.exp(-opaque_density(field) * 4 * 1.6 / 32) == pytest.approx(0.5)
    radius = np.linalg.norm(extract_mesh(field).vertices - np.array(CENTRE), axis=1).mean()
    assert radius == pytest.approx(math.sqrt(0.25 - opaque_density(field) / 100), abs=0.003)


def test_small_solids_are_left_out() -> None:
    field = bumps((-0.3, 0, 0, 0.15), (0.5, 0.3, 0.4, 0.08))  # volumes as 1 to 0.15
    counts = {
        share: solid(extract_mesh(field, resolution=64, density=20, share=share)).body_count
        for share in (0, 0.1, 0.25, 1)
    }
    assert counts == {0: 2, 0.1: 2, 0.25: 1, 1: 1}
    mesh = extract_mesh(field, resolution=64, density=20, share=1)
    assert mesh.vertices[:, 0].max() < 0.1


@pytest.mark.parametrize("form", FORMS)
def test_a_solid_that_reaches_the_end_of_the_box_is_closed(form: str) -> None:
    decoder = FieldDecoder(form=form, **SIZES)
    if form == "triplane":  # dense everywhere, without end
        torch.nn.init.zeros_(decoder.density_out.weight)
        torch.nn.init.constant_(decoder.density_out.bias, 9.0)
    planes, lines = torch.full((1, 3, 8, 4, 4), 2.0), torch.full((1, 3, 8, 4), 2.0)
    field = Field(planes if form != "cp" else None, lines if form != "triplane" else None, decoder, padding="border")
    body = solid(extract_mesh(field, resolution=20, density=1.0))
    assert body.is_watertight and body.volume > 0
    assert body.extents == pytest.approx([2.0 + 0.2] * 3, abs=0.03)  # half a texel, and most of a cell, more


def test_the_default_resolution_is_that_of_the_field() -> None:
    field, radius = ball(100.0), math.sqrt(0.25 - 10 / 100)
    mesh, finer = (extract_mesh(field, resolution=resolution, density=10.0) for resolution in (None, 128))
    assert (mesh.vertices == extract_mesh(field, resolution=32 + 2, density=10.0).vertices).all()
    assert len(mesh.vertices) < 0.1 * len(finer.vertices)
    corners = (mesh.vertices - np.array(CENTRE))[mesh.faces]  # (f, 3, 3)
    off = np.linalg.norm(np.concatenate((corners.reshape(-1, 3), corners.mean(1))), axis=1) - radius
    assert np.abs(off).max() < 0.1 * (1.6 / 32), "a tenth of a texel"


def test_glb_is_read_back(tmp_path: Path) -> None:
    mesh = extract_mesh(ball(100.0), resolution=24)
    mesh.save(tmp_path / "a.glb")
    content = (tmp_path / "a.glb").read_bytes()
    (found,) = trimesh.load(io.BytesIO(content), file_type="glb", process=False).geometry.values()
    assert (found.vertices == mesh.vertices * [1, -1, -1]).all() and (found.faces == mesh.faces).all()
    assert found.volume > 0
    linear = found.visual.vertex_attributes["color"] / 65535
    colours = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(colours[:, :3] - mesh.colours).max() < 2e-4 and (linear[:, 3] == 1).all()
    tree = json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["attributes"].keys() == {"POSITION", "COLOR_0"}
    accessor = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"], accessor["normalized"]) == (5123, "VEC4", True)
    assert "KHR_materials_unlit" in tree["materials"][primitive["material"]]["extensions"]
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]


def test_ply_is_read_back(tmp_path: Path) -> None:
    mesh = extract_mesh(ball(100.0), resolution=24)
    mesh.save(tmp_path / "a.PLY")
    found = trimesh.load(io.BytesIO((tmp_path / "a.PLY").read_bytes()), file_type="ply", process=False)
    assert (found.vertices == mesh.vertices * [1, -1, -1]).all() and (found.faces == mesh.faces).all()
    assert np.abs(found.visual.vertex_colors[:, :3] / 255 - mesh.colours).max() <= 0.5 / 255 + 1e-6


def test_the_input_view_is_in_front(tmp_path: Path) -> None:
    mesh = extract_mesh(bumps((0.3, -0.4, -0.5, 0.1), (0, 0, 0, 1e-3)), resolution=48)  # right, up, near
    for name in ("a.glb", "a.ply"):
        mesh.save(tmp_path / name)
        found = trimesh.load_mesh(tmp_path / name)
        assert found.bounds.mean(0) == pytest.approx([0.3, 0.4, 0.5], abs=0.01)


def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = ball(100.0)
    for keywords, message in (
        ({"resolution": 1}, "resolution 1"),
        ({"resolution": 1000}, "resolution 1000"),
        ({"density": 0.0}, "density 0"),
        ({"density": math.nan}, "density nan"),
        ({"share": 1.5}, "share 1.5"),
        ({"density": 80.0}, r"nothing is as dense as 80: give a density below 2\d"),
    ):
        with pytest.raises(InputError, match=message):
            extract_mesh(field, **keywords)
    with pytest.raises(InputError, match="2 scenes"):
        extract_mesh(make(b=2))
    with pytest.raises(InputError, match=r"end the name with \.glb or \.ply"):
        extract_mesh(field, resolution=8).save(tmp_path / "a.obj")
    monkeypatch.setattr(mesh_module, "MAX_VERTICES", 100)
    with pytest.raises(InputError, match="at most 100: lower the resolution"):
        extract_mesh(field)
    monkeypatch.setattr(mesh_module, "MAX_NUMBERS", 1000)
    with pytest.raises(InputError, match="8 channels at resolution 34 is too large"):
        extract_mesh(field)
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_stands_upright_where_the_camera_looked_down(tmp_path: Path) -> None:
    """A bump straight below the origin, as a camera sees it that looks down by 30 degrees."""
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    mesh = extract_mesh(bumps((0.3, 0.5 * cos, 0.5 * sin, 0.1), (0, 0, 0, 1e-3)), resolution=48)
    mesh.upright(30).save(tmp_path / "a.ply")
    assert trimesh.load_mesh(tmp_path / "a.ply").bounds.mean(0) == pytest.approx([0.3, -0.5, 0], abs=0.01)
    assert (mesh.upright(0).vertices == mesh.vertices).all()
