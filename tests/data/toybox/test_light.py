"""Light on a leaning surface, from the world normal worked out in full; textures."""

import numpy as np
import torch

from belvedere.data.toybox.light import AMBIENT, SKY, SUN, lighting, lit, pattern, soft_steps, wave
from belvedere.data.toybox.shapes import CHECKS, PLAIN, STRIPES, WOOD, turn, wedge
from belvedere.data.toybox.view import View
from tests.data.toybox.worlds import world


def test_light_is_that_of_the_unit_normal_in_the_world() -> None:
    sun = np.array([0.48, 0.6, 0.64])
    prim = wedge((0, 1, 0), (0.7, 0.2, 1.3), (1, 1, 1), (1, 1), rotation=turn("x", 25), lean=1.4)
    scenes, pose = world([prim], elevation=0.4, sun=tuple(sun))
    view = View(scenes, pose, (8, 8), 1, torch.device("cpu"))
    local = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0))
    gloss, glow = torch.full((1, 1), 0.5), torch.zeros(1, 1)
    light, gleam = lit(list(local), lighting(view)[:, [0]][:, :, None], gloss, glow)

    axes = scenes.prims[0, 4:13].reshape(3, 3)
    normal = np.linalg.inv(axes).T @ local[:, 0].double().numpy()
    normal /= np.linalg.norm(normal, axis=0)
    half = sun - pose[0, :3, 2]
    half /= np.linalg.norm(half)
    expected = AMBIENT + SKY * normal[1] + SUN * np.maximum(sun @ normal, 0)
    assert np.allclose(light[0], expected, atol=1e-5)
    assert np.allclose(gleam[0], 0.5 * np.maximum(half @ normal, 0) ** 16, atol=1e-5)
    glowing, _ = lit(list(local), lighting(view)[:, [0]][:, :, None], gloss, torch.ones(1, 1))
    assert torch.equal(glowing, torch.ones_like(glowing))


def test_the_wave_has_period_two() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0])
    assert torch.allclose(wave(x), torch.tensor([1.0, -1.0, 1.0, 0.0, -1.0, 0.0, 1.0]))
    assert torch.equal(soft_steps(torch.tensor([-1.0, 0.0, 0.1, 1.0]), 5), torch.tensor([0.0, 0.5, 0.75, 1.0]))


def test_textures_share_out_the_two_colours() -> None:
    side = torch.linspace(-1, 1, 200)
    x, z = torch.meshgrid(side, side, indexing="ij")
    repeats = torch.tensor(4.0)
    for texture in (STRIPES, CHECKS, WOOD):
        share = pattern(texture, [x, x, z], repeats)
        assert share.min() >= 0 and share.max() <= 1
        assert 0.35 < share.mean() < 0.65, texture
    checks = pattern(CHECKS, [x, x, z], repeats)
    assert torch.allclose(checks, checks.T, atol=1e-5)
    assert PLAIN not in (STRIPES, CHECKS, WOOD)
