"""Golden cases of NViST: latent tokens, volumes, density and colour at points, cameras, rendered rays, gradients."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from belvedere import kernels
from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_mae import start_encoder
from belvedere.checkpoints.official_nvist import nvist_names, to_official
from belvedere.synthesis.cameras import Camera, conditions, relative_poses
from belvedere.synthesis.field import Field, encode_directions
from belvedere.synthesis.mae import MAE
from belvedere.synthesis.nvist import NViST, camera_waves
from belvedere.synthesis.render import render_rays, sample_edges

Cases = Iterator[tuple[str, Tensor, Tensor]]
INPUT_NORMS = {"imagenet": "imagenet", "minus_one_to_one": "half"}


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """Yield (case, ours, official) for everything the file holds."""
    state = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    model = load_official("nvist", state, _untold(description["config"]))
    for name in ("encoder.pos_embed", "decoder.decoder_pos_embed"):
        yield f"sd.{name}", to_official(model)[name], state[name]
    with torch.no_grad():
        yield from _network(model, state, tensors)
        yield from _points(_field(model, tensors), tensors)
        yield from _cameras(tensors)
        yield from _rays(model, tensors)
    yield from _gradients(model, tensors)


def _untold(official: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that weights do not tell."""
    encoder, decoder, renderer = (official[part] for part in ("encoder", "decoder", "renderer"))
    near, far = renderer["near_far"]
    return {
        "near": near,
        "far": far,
        "encoder_heads": encoder["num_heads"],
        "decoder_heads": decoder["decoder_num_heads"],
        "input_norm": INPUT_NORMS[encoder["input_norm"]],
        "half_side": renderer["aabb"][1][0],
        "padding": "zeros" if renderer["padding_zero"] else "border",
        "samples": renderer["n_samples"],
    }


def _network(model: NViST, state: dict[str, Tensor], tensors: dict[str, Tensor]) -> Cases:
    image, camera = tensors["in.images"], tensors["in.camera_params"]
    yield "out.latent", model.encode(image), tensors["out.latent"]
    yield "out.latent_normed", _normed(model, image, state), tensors["out.latent_normed"]
    yield "out.camera_pe", camera_waves(camera, model.config.camera_frequencies), tensors["out.camera_pe"]
    planes, lines, _ = model.decode(tensors["out.latent"], camera)
    yield "out.matrices", planes.transpose(0, 1), tensors["out.matrices"]
    yield "out.vectors", lines.transpose(0, 1)[..., None], tensors["out.vectors"]
    field = model(image, camera)
    yield "out.matrices (whole)", field.planes.transpose(0, 1), tensors["out.matrices"]
    yield "out.vectors (whole)", field.lines.transpose(0, 1)[..., None], tensors["out.vectors"]


def _normed(model: NViST, image: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The encoder's tokens as pre-training has them, through the norm that NViST leaves out."""
    fields = ("patch", "dim", "encoder_depth", "encoder_heads", "encoder_mlp_ratio", "input_norm")
    small = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 1}
    pretraining = MAE(**{field: model.config[field] for field in fields}, **small)
    taken = start_encoder(pretraining, {name: x for name, x in state.items() if name.startswith("encoder.")})
    assert len(taken) == len(list(pretraining.encoder.parameters())) + 3, "the encoder, its norm and the mask token"
    return pretraining.norm(pretraining.encoder(image))


def _field(model: NViST, tensors: dict[str, Tensor]) -> Field:
    """The field of the official volumes."""
    planes, lines = tensors["out.matrices"].transpose(0, 1), tensors["out.vectors"].transpose(0, 1)[..., 0]
    return _scaled(Field(planes, lines, model.field_decoder, model.config.half_side, model.config.padding), tensors)


def _scaled(field: Field, tensors: dict[str, Tensor]) -> Field:
    """The official renderer was given both volumes times a number."""
    scale = tensors["in.volume_scale"]
    return replace(field, planes=field.planes * scale, lines=field.lines * scale)


def _points(field: Field, tensors: dict[str, Tensor]) -> Cases:
    points = tensors["in.points_normalised"].flatten(1, 2) * field.half_side
    directions = tensors["in.points_viewdirs"].flatten(1, 2)
    density, colour = field(points, directions)
    yield "out.point_sigma", density, tensors["out.point_sigma"]
    yield "out.point_rgb_logits", colour.double().logit(), tensors["out.point_rgb_logits"]
    wanted = tensors["out.viewdir_pe"]
    waves = encode_directions(directions[0, : len(wanted)], field.decoder.sizes["frequencies"])
    yield "out.viewdir_pe", waves[..., :-3], wanted


def _cameras(tensors: dict[str, Tensor]) -> Cases:
    scene, focal, index = tensors["cam.c2w_scene"].double(), tensors["cam.focal_px"], tensors["cam.ray_index"]
    relative = relative_poses(scene)
    yield "cam.c2w_relative", relative, tensors["cam.c2w_relative"]
    size = tensors["cam.dirs_raw"].shape[1:3]
    cameras = [
        [_camera(pose, pixels, size) for pose in poses] for poses, pixels in zip(relative, focal.tolist(), strict=True)
    ]
    rays = [[camera.rays(index.long()) for camera in views] for views in cameras]
    for i, name in enumerate(("cam.ro_sel", "cam.rd_sel")):
        yield name, torch.stack([torch.stack([ray[i] for ray in views]) for views in rays]), tensors[name]
    still = [replace(views[0], pose=torch.eye(4, dtype=torch.float64)).rays()[1] for views in cameras]
    raw = torch.stack([directions / directions[..., 2:] for directions in still])
    yield "cam.dirs_raw", raw, tensors["cam.dirs_raw"]
    first = conditions([views[0] for views in cameras])
    yield "cam.conditions", first, tensors["in.camera_params"]


def _camera(pose: Tensor, focal: float, size: tuple[int, int]) -> Camera:
    return Camera(pose, (focal, focal), (size[1] / 2, size[0] / 2), tuple(size))


def _how(model: NViST) -> dict[str, Any]:
    return {name: model.config[name] for name in ("near", "far", "samples")}


def _rays(model: NViST, tensors: dict[str, Tensor]) -> Cases:
    """Rendered rays, whose directions are not of unit length, by the table of densities and without it."""
    rays, how, points = (tensors["in.rays_o"], tensors["in.rays_d"]), _how(model), []

    class Watched(Field):
        def density(self, asked: Tensor) -> Tensor:
            points.append(asked)
            return super().density(asked)

    field = _field(model, tensors)
    watched = Watched(field.planes, field.lines, field.decoder, field.half_side, field.padding)
    for name, of, exact in (("", field, False), (" (exact)", watched, True)):
        seen = render_rays(of, *rays, **how, exact=exact)
        yield f"out.rgb{name}", seen.colour, tensors["out.rgb"]
        yield f"out.depth{name}", seen.depth, tensors["out.depth"]
        yield f"out.distloss{name}", seen.distortion[None], tensors["out.distloss"]
    yield "out.rgb_white", render_rays(field, *rays, **how, background=1.0).colour, tensors["out.rgb_white"]
    edges = sample_edges(*how.values())
    yield "out.edges", edges[None], tensors["out.edges"]
    asked = torch.cat(points, 1).unflatten(1, (-1, how["samples"]))  # (b, n, s, 3)
    yield "out.points_ray0", asked[:, : tensors["out.points_ray0"].shape[1]], tensors["out.points_ray0"]
    density = field.density(asked.flatten(1, 2)).view(asked.shape[:3])
    yield "out.weights", kernels.ray_weights(density, edges)[0], tensors["out.weights"]


def _gradients(model: NViST, tensors: dict[str, Tensor]) -> Cases:
    """From the colour of rays back to the encoder."""
    model.requires_grad_(True)
    field = _scaled(model(tensors["in.images"], tensors["in.camera_params"]), tensors)
    seen = render_rays(field, tensors["in.rays_o"], tensors["in.rays_d"], **_how(model))
    value = seen.colour.square().mean() + 0.1 * seen.distortion
    value.backward()
    yield "grad.loss", value[None], tensors["grad.loss"]
    official = {name[5:]: x for name, x in tensors.items() if name.startswith("grad.") and name != "grad.loss"}
    ours = dict(model.named_parameters())
    for name, want in nvist_names(official).items():
        yield f"grad.{name}", ours[name].grad, want
        unit = want.abs().max()  # many are below the absolute tolerance
        yield f"grad.{name} (of its largest)", ours[name].grad / unit, want / unit
