"""How NViST learns: the field it makes of one view is rendered from where other views of the scene were taken.

    image ─► NViST ─► field ─► rays of a patch of one target view, and of pixels anywhere ─► colours
                                        L2 of all + 0.1 perceptual loss of the patch + 0.001 distortion

Jang and Agapito, "NViST", CVPR 2024, arXiv 2312.08568, section 3.4; the weights are the published ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.data.cameras import Camera
from belvedere.errors import InputError
from belvedere.seeds import BatchRng, generator
from belvedere.synthesis.cameras import relative_poses
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.perceptual import structure_loss
from belvedere.synthesis.render import render_rays, render_view, sample_edges

OPAQUE = 1e-3
"""The transmittance behind which samples are not coloured in training: what they add to a pixel is below it."""
UNLIKELY = 1e-6
"""Added to the weight of the sample that a ray truly ends in, so that its logarithm is finite."""
PRETRAINED_SCALE = 0.2
"""Learning rate of an encoder that begins pre-trained, as a share of the others': published 4e-5 of 2e-4."""


class Rays(NamedTuple):
    """Rays and what they should see, n a scene, in the frame of its input view."""

    origins: Tensor
    """(b, n, 3)."""
    directions: Tensor
    """(b, n, 3), of unit length."""
    colours: Tensor
    """(b, n, 3) in [0, 1]."""


def loss(
    model: NViST,
    batch: dict[str, Tensor],
    rng: BatchRng,
    *,
    patch: Sequence[int] = (32, 32),
    rays: int = 512,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = structure_loss,
    perceptual_weight: float = 0.1,
    distortion_weight: float = 0.001,
    distance_weight: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch of scenes, and what to log.

    ``batch``: as ``ToyboxViews.batch`` has it. In every scene a ``patch`` (height, width) of one target view is
    rendered, which is compared by ``perceptual`` too, and ``rays`` pixels of all views, the input's among them. Without
    ``perceptual`` there is no patch. ``distance_weight``, where the data has ``distances``: of ``distance_loss``.
    """
    truth = (torch.cat((batch["image"][:, None], batch["views"]), 1) + 1) / 2  # (b, v, 3, h, w)
    size = truth.shape[-2:]
    pixels = choose_pixels(rng, len(truth[0]), size, None if perceptual is None else patch, rays)
    with torch.autocast(truth.device.type, enabled=False):
        target = view_rays(truth, batch["poses"], batch["intrinsics"], pixels)
        conditions = input_conditions(batch["poses"], batch["intrinsics"], size[0])
    field = model(truth[:, 0], conditions)
    config: Any = model.config
    jitter = torch.rand(config.samples, generator=generator(rng.seed, rng.step, "jitter")).to(truth.device)
    options = {"near": config.near, "far": config.far, "samples": config.samples}
    seen = render_rays(field, target.origins, target.directions, **options, jitter=jitter, opaque=OPAQUE)
    error = F.mse_loss(seen.colour, target.colours)
    value = error + distortion_weight * seen.distortion
    logs = {"mse": error, "psnr": -10 * error.detach().log10(), "distortion": seen.distortion}
    logs |= {"opacity": seen.opacity.mean()}
    if distance_weight:
        edges = sample_edges(**options, jitter=jitter, device=pixels.device)
        logs["distance"] = distance_loss(
            cast(Tensor, seen.weights), edges, batch["distances"].flatten(1).gather(1, pixels)
        )
        value = value + distance_weight * logs["distance"]
    if perceptual is not None:
        logs["perceptual"] = perceptual(_patch(seen.colour, patch), _patch(target.colours, patch))
        value = value + perceptual_weight * logs["perceptual"]
    return value, {name: number.item() for name, number in {"loss": value, **logs}.items()}


def distance_loss(weights: Tensor, edges: Tensor, distances: Tensor) -> Tensor:
    """Return the mean negative logarithm of the weight (b, n, s) of the samples that rays truly end in.

    That is how unlikely the true ``distances`` (b, n) are when weights are taken for the chances of where a ray ends
    (Deng et al., "DS-NeRF", CVPR 2022, arXiv 2107.02791, section 3.2). ``edges`` (s + 1,) of the samples: to what lies
    beyond the last a ray has to get through all of them.
    """
    chances = torch.cat((weights, 1 - weights.sum(-1, keepdim=True)), -1)
    sample = torch.searchsorted(edges[1:], distances.contiguous())
    return -(chances.gather(-1, sample[..., None]).clamp(min=0) + UNLIKELY).log().mean()


def choose_pixels(rng: BatchRng, views: int, size: Sequence[int], patch: Sequence[int] | None, rays: int) -> Tensor:
    """Return numbers (b, n) of pixels, counted view by view and row by row; view 0 is the input.

    The first are those of a ``patch`` (height, width) anywhere in a target view, row by row, if there is one; ``rays``
    others follow, drawn from all views. ``size`` (height, width) of a view. Raises ``InputError`` for a patch that does
    not fit.
    """
    total = views * size[0] * size[1]
    share = torch.special.ndtr(rng.normal("rays", (rays,)))  # uniform in [0, 1]
    anywhere = (share * total).long().clamp_(max=total - 1)
    return anywhere if patch is None else torch.cat((_patch_pixels(rng, views, size, patch), anywhere), 1)


def _patch_pixels(rng: BatchRng, views: int, size: Sequence[int], patch: Sequence[int]) -> Tensor:
    (height, width), (down, across) = size, patch
    if views < 2 or not (1 <= down <= height and 1 <= across <= width):
        raise InputError(f"a patch of {across} x {down} pixels in {views - 1} views of {width} x {height}: none fits")

    def whole(name: str, count: int) -> Tensor:
        return (rng.uniform(name) * count).long().clamp_(max=count - 1)  # (b,), from 0

    view, top, left = 1 + whole("view", views - 1), whole("top", height - down + 1), whole("left", width - across + 1)
    corner = (view * height + top) * width + left
    steps = torch.arange(down)[:, None] * width + torch.arange(across)  # (h, w)
    return corner[:, None] + steps.flatten().to(corner.device)


def view_rays(images: Tensor, poses: Tensor, intrinsics: Tensor, pixels: Tensor) -> Rays:
    """Return the rays through the centres of pixels, and the colours there.

    ``images`` (b, v, 3, h, w), ``poses`` (b, v, 4, 4) and ``intrinsics`` (b, v, 4) as ``ToyboxViews.batch`` has them,
    the input view first; ``pixels`` (b, n) as ``choose_pixels`` counts them. Lenses are taken to have no distortion.
    """
    height, width = images.shape[-2:]
    view, row, column = pixels // (height * width), pixels // width % height, pixels % width
    scene = torch.arange(len(pixels), device=pixels.device)[:, None]
    pose, lens = relative_poses(poses)[scene, view], intrinsics[scene, view]  # (b, n, 4, 4), (b, n, 4)
    place = (torch.stack((column, row), -1) + 0.5 - lens[..., 2:]) / lens[..., :2]
    forward = F.normalize(F.pad(place, (0, 1), value=1.0), dim=-1)  # in the camera's axes
    directions = (pose[..., :3, :3] * forward[..., None, :]).sum(-1)
    return Rays(pose[..., :3, 3], directions, images.permute(0, 1, 3, 4, 2).flatten(1, 3)[scene, pixels])


def input_conditions(poses: Tensor, intrinsics: Tensor, height: int) -> Tensor:
    """Return distance and focal length in heights (b, 2) of the input views; see ``cameras.conditions``."""
    return torch.stack((poses[:, 0, :3, 3].norm(dim=-1), intrinsics[:, 0, 1] / height), -1)


def _patch(colours: Tensor, patch: Sequence[int]) -> Tensor:
    """Return the pictures (b, 3, h, w) of the patches that the first rays (b, n, 3) are of."""
    return colours[:, : patch[0] * patch[1]].unflatten(1, tuple(patch)).permute(0, 3, 1, 2)


@torch.no_grad()
def render_targets(model: NViST, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target views (b, v, 3, h, w) of a batch as they are, as they are made, and their depth, on the CPU.

    All in [0, 1]; depth is grey, black at near and white at far, where what is not opaque shows the end of the rays.
    """
    truth = (batch["views"].cpu() + 1) / 2
    size = (truth.shape[-2], truth.shape[-1])
    image, poses, lenses = (batch[name].to(model.device) for name in ("image", "poses", "intrinsics"))
    field = model((image + 1) / 2, input_conditions(poses, lenses, size[0]))
    config: Any = model.config
    options = {"near": config.near, "far": config.far, "samples": config.samples}
    made, depth = torch.empty_like(truth), torch.empty_like(truth)
    relative = relative_poses(poses).double().cpu()
    for scene, view in ((i, k) for i in range(len(truth)) for k in range(truth.shape[1])):
        fx, fy, cx, cy = lenses[scene, 1 + view].tolist()
        camera = Camera(relative[scene, 1 + view], (fx, fy), (cx, cy), size)
        seen = render_view(field.scene(scene), camera, **options)
        made[scene, view] = seen.colour.permute(2, 0, 1)
        along = seen.depth + (1 - seen.opacity) * config.far
        depth[scene, view] = (along - config.near) / (config.far - config.near)
    return truth, made, depth


def parameter_groups(model: nn.Module, weight_decay: float, *, pretrained: bool = False) -> list[dict[str, Any]]:
    """Return AdamW groups: the encoder, which learns more slowly where it is ``pretrained``, and the rest."""
    named = list(model.named_parameters())
    encoder, rest = ([p for name, p in named if name.startswith("encoder.") == first] for first in (True, False))
    return [
        {"params": encoder, "weight_decay": weight_decay, "lr_scale": PRETRAINED_SCALE if pretrained else 1.0},
        {"params": rest, "weight_decay": weight_decay, "lr_scale": 1.0},
    ]
