"""Golden cases of SegPIC: every stage on a grid and with regions, gradients, losses and the official streams."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_segpic import segpic_names
from belvedere.compression.official_stream import Strings, decode
from belvedere.compression.official_tables import bottleneck_tables, gaussian_tables
from belvedere.compression.segpic import Coded, SegPIC, rate_distortion
from tests.official_segpic import golden_weights

Cases = Iterator[tuple[str, Tensor, Tensor]]

OUTPUTS = {
    "analysis1": "y1_pre",
    "prototypes1.encoder": "p1_code",
    "prototypes1.decoder": "p1_recon",
    "encoder_rat": "y1",
    "analysis2": "y",
    "prototypes2.encoder": "p2_code",
    "prototypes2.decoder": "p2_recon",
    "hyper_rat": "y_rat",
    "hyper_analysis": "z",
    "hyper_scales": "scales_pre",
    "hyper_means": "means_pre",
    "scales_rat": "latent_scales",
    "means_rat": "latent_means",
    "channel_context": "y_hat",
    "synthesis1": "s0",
    "decoder_rat": "s0_rat",
    "synthesis2": "x_hat",
}
"""Modules, and the official names of what they return."""
INPUTS = {
    "prototypes1.encoder": "p1",
    "prototypes1.decoder": "p1_code_hat",
    "prototypes2.encoder": "p2",
    "prototypes2.decoder": "p2_code_hat",
    "hyper_means": "z_hat",
}
LIKELIHOODS = {"y": "y", "z": "z", "prototypes1": "z_center", "prototypes2": "z_center2"}
"""Ours, and the official names."""


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """Yield (case, ours, official) for everything the file holds."""
    model = load_official("segpic", golden_weights(description["width_divisor"], description["salt"]))
    for mode in ("grid", "mask"):
        yield from _mode(model, mode, description, tensors)
    if "bitstream" in description:
        yield from _streams(model, description, tensors)


def _mode(model: SegPIC, mode: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    x, regions = tensors["x"], tensors["mask"] if mode == "mask" else None
    seen: dict[str, Tensor] = {}
    hooks = [hook for name, module in model.named_modules() for hook in _watch(name, module, seen)]
    trained = f"{mode}_grad" in description
    with torch.set_grad_enabled(trained):
        coded = model(x, regions, grid=description["grid"])
    for hook in hooks:
        hook.remove()
    seen |= {f"lik_{official}": coded.likelihoods[ours] for ours, official in LIKELIHOODS.items()}
    for name, want in tensors.items():
        if match := re.fullmatch(rf"{mode}/(\w+?)(?:_ch_stride(\d+))?", name):
            yield name, seen[match[1]][:, :: int(match[2] or 1)], want
    yield from _rates(coded, x, mode, description)
    if trained:
        yield from _gradients(model, coded, mode, description, tensors)


def _watch(name: str, module: nn.Module, seen: dict[str, Tensor]) -> Iterator[Any]:
    if name in INPUTS:
        yield module.register_forward_pre_hook(lambda module, inputs: seen.update({INPUTS[name]: inputs[0]}))
    if name in OUTPUTS:
        yield module.register_forward_hook(lambda module, inputs, output: seen.update({OUTPUTS[name]: output}))


def _rates(coded: Coded, x: Tensor, mode: str, description: dict[str, Any]) -> Cases:
    wanted = description[f"{mode}_run"]
    _, logs = rate_distortion(coded, x, 0.0)
    pixels = x.numel() / 3
    for ours, official in LIKELIHOODS.items():
        bpp = -torch.log2(coded.likelihoods[ours]).sum() / pixels
        yield f"{mode}.bpp_{official}", bpp, torch.tensor(wanted[f"bpp_{official}"])
    for name in ("bpp", "mse"):
        yield f"{mode}.{name}", torch.tensor(logs[name]), torch.tensor(wanted[name])


def _gradients(
    model: SegPIC, coded: Coded, mode: str, description: dict[str, Any], tensors: dict[str, Tensor]
) -> Cases:
    wanted = description[f"{mode}_grad"]
    value, _ = rate_distortion(coded, tensors["x"], wanted["lmbda"])
    model.zero_grad()
    value.backward()
    yield f"{mode}.loss", value, torch.tensor(wanted["loss"])
    yield f"{mode}.aux_loss", model.quantile_loss(), torch.tensor(wanted["aux_loss"])
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    without = len(list(model.parameters())) - len(ours)
    yield f"{mode}.params_without_grad", torch.tensor(without), torch.tensor(len(wanted["params_without_grad"]))
    total = torch.nn.utils.get_total_norm(ours.values())
    yield f"{mode}.grad_norm_total", total, torch.tensor(wanted["grad_norm_total"])
    start = f"{mode}/grad/"
    official = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    for name, want in segpic_names(official).items():
        unit = want.abs().max()  # many are far below the absolute tolerance
        yield f"{start}{name} (of its largest)", ours[name] / unit, want / unit


def _streams(model: SegPIC, description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """The integer tables of the official coder, and what is read from its bytes."""
    wanted = description["bitstream"]
    tables = {
        "gaussian_conditional": gaussian_tables(),
        "entropy_bottleneck": bottleneck_tables(model.bottleneck),
        "entropy_bottleneck_b": bottleneck_tables(model.prototypes1.bottleneck),
        "entropy_bottleneck_b2": bottleneck_tables(model.prototypes2.bottleneck),
    }
    for name, ours in tables.items():
        official, padded = wanted[f"cdf_{name}"], ours.padded()
        yield f"bits/cdf_{name}.shape", torch.tensor(padded.shape), torch.tensor(official["shape"])
        digest = hashlib.sha256(padded.tobytes()).digest()
        yield f"bits/cdf_{name}.sha256", _numbers(digest), _numbers(bytes.fromhex(official["sha256_int32_le"]))
        yield f"bits/cdf_{name}.offset_head", torch.tensor(ours.offset[:4]), torch.tensor(official["offset_head"])
        lengths = [len(cdf) for cdf in ours.cdf[:4]]
        yield f"bits/cdf_{name}.length_head", torch.tensor(lengths), torch.tensor(official["length_head"])
    strings = Strings(*(tensors[f"bits/string_{name}"].numpy().tobytes() for name in ("y", "z", "p1", "p2")))
    decoded = decode(model, strings, tuple(wanted["z_shape"]), description["grid"])
    for name, ours in zip(("p1_code_hat", "p2_code_hat", "z_hat", "y_hat", "x_hat"), decoded, strict=True):
        yield f"bits/{name}", ours, tensors[f"grid/{name}"]
    bits = 8 * sum(len(string) for string in strings)
    yield "bits/bpp_actual", torch.tensor(bits / (tensors["x"].numel() / 3)), torch.tensor(wanted["bpp_actual"])


def _numbers(digest: bytes) -> Tensor:
    return torch.tensor(list(digest))
