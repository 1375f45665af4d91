"""A small network that makes scenes, a picture of a toy, a scene that is a ball: what tests of views share."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from belvedere.apps.requests import ViewRequest
from belvedere.apps.scenes import Scene
from belvedere.checkpoints.views import save_scene_model
from belvedere.data.toybox import Toybox
from belvedere.synthesis.cameras import input_camera
from belvedere.synthesis.field import Field, FieldDecoder
from belvedere.synthesis.nvist import NViST
from tests.synthesis.test_nvist import small

SIZE = (32, 24)
"""Height and width of the network's pictures."""
DISTANCE, FOV = 2.0, 40.0


def network(**changes: Any) -> NViST:
    """A network with random weights, whose scenes are full of shapes."""
    model = small(**({"image": list(SIZE), "patch": 8, "near": 1.0, "far": 3.0} | changes))
    torch.manual_seed(0)
    for heads in (model.decoder.plane_heads, model.decoder.line_heads):
        for linear in heads.linears:
            torch.nn.init.normal_(linear.weight, std=1.0)
    return model


def save_model(folder: Path, **changes: Any) -> Path:
    save_scene_model(network(**changes), "float32", folder, {"steps": 0}, distance=DISTANCE, fov=FOV)
    return folder


def toy(size: tuple[int, int] = (72, 54)) -> Image.Image:
    """A picture of a toy, of (height, width)."""
    picture = Toybox(size, seed=3)[0]["image"]
    return Image.fromarray(((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())  # (h, w, 3)


def ball(centre: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 0.4) -> Scene:
    """A dense ball, x to the right, y down, z away from the camera, as a scene of one channel of each kind."""
    r = 64
    torch.manual_seed(0)
    decoder = FieldDecoder(density=1, colour=1, hidden=4, frequencies=1).requires_grad_(False)
    at = ((torch.arange(r) + 0.5) / r * 2 - 1) * 0.8
    x, y, z = (5000 * (radius**2 / 3 - (at - c) ** 2) for c in centre)
    planes, lines = torch.zeros(1, 3, 2, r, r), torch.zeros(1, 3, 2, r)
    # Density is the sum over planes of plane times line: x y-plane times 1, and nothing from the others but z.
    planes[0, 0, 0], lines[0, 0, 0] = y[:, None] + x, 1
    planes[0, 1, 0], lines[0, 1, 0] = 1, 0
    planes[0, 2, 0], lines[0, 2, 0] = z[:, None].expand(r, r), 1
    return Scene(Field(planes, lines, decoder), input_camera(SIZE, distance=DISTANCE, fov=FOV), 1.0, 3.0, 64, 0.0, {})


def request(**changes: Any) -> ViewRequest:
    return ViewRequest(**({"size": (24, 32), "frames": 4, "device": "cpu"} | changes))
