"""What an official SegPIC checkpoint holds (specification, section 7): names, shapes, the golden files' weights."""

import math
import zlib
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
DOUBLES = {
    "basic_E.0": "g_a1.0", "basic_E.1": "g_a1.1", "basic_E.2": "g_a2.0", "basic_E.3": "g_a2.1",
    "basic_D.0": "g_s0.1", "basic_D.1": "g_s0.2", "basic_D.2": "g_s1.1", "basic_D.3": "g_s1.2",
}  # fmt: skip
"""Blocks that are stored twice, under two names."""


def _conv(name: str, o: int, i: int, k: int = 1) -> Shapes:
    return {f"{name}.weight": (o, i, k, k), f"{name}.bias": (o,)}


def _gdn(name: str, c: int) -> Shapes:
    return {f"{name}.beta": (c,), f"{name}.gamma": (c, c)}


def _affine(name: str, c: int) -> Shapes:
    return _conv(f"{name}.scales_bias.0", c, c) | _conv(f"{name}.scales_bias.2", 2 * c, c)


def _attention(name: str, c: int, window: int) -> Shapes:
    attention, half = f"{name}.conv_b.0.attn", c // 2
    shapes: Shapes = {f"{attention}.relative_position_bias_table": ((2 * window - 1) ** 2, 8)}
    shapes |= {f"{attention}.qkv.weight": (3 * c, c), f"{attention}.qkv.bias": (3 * c,)}
    shapes |= {f"{attention}.proj.weight": (c, c), f"{attention}.proj.bias": (c,)}
    for unit in ("conv_a.0", "conv_a.1", "conv_a.2", "conv_b.1", "conv_b.2", "conv_b.3"):
        shapes |= _conv(f"{name}.{unit}.conv.0", half, c) | _conv(f"{name}.{unit}.conv.2", half, half, 3)
        shapes |= _conv(f"{name}.{unit}.conv.4", c, half)
    return shapes | _conv(f"{name}.conv_b.4", c, c)


def _rat(name: str, c: int) -> Shapes:
    shapes = _conv(f"{name}.conv.0", c, c) | _conv(f"{name}.conv.2", c, c) | _conv(f"{name}.k_sp_gen.0", c, 2 * c)
    shapes |= _conv(f"{name}.k_sp_gen.2", c, c, 3) | _conv(f"{name}.k_sp_gen.4", 9 * c, 1, 3)
    shapes |= _conv(f"{name}.k_ch_gen.1", c, c) | _conv(f"{name}.k_ch_gen.3", c, c)
    return shapes | _conv(f"{name}.conv_out", c, c)


def _bottleneck(name: str, c: int) -> Shapes:
    shapes: Shapes = {f"{name}.quantiles": (c, 1, 3)}
    for i, (inputs, outputs) in enumerate(pairwise((1, 3, 3, 3, 3, 1))):
        shapes |= {f"{name}._matrix{i}": (c, outputs, inputs), f"{name}._bias{i}": (c, outputs, 1)}
        shapes |= {f"{name}._factor{i}": (c, outputs, 1)} if i < 4 else {}
    return shapes


def _pointwise(name: str, *widths: int) -> Shapes:
    shapes: Shapes = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes |= _conv(f"{name}.{2 * i}", outputs, inputs) | (_gdn(f"{name}.{2 * i + 1}", outputs) if i < 2 else {})
    return shapes


def _stack(name: str, *widths: int) -> Shapes:
    shapes: Shapes = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes |= _conv(f"{name}.{2 * i}", outputs, inputs, 3)
    return shapes


def _subpixel(name: str, n: int, a: int, b: int, c: int, m: int) -> Shapes:
    shapes = _conv(f"{name}.0", n, n, 3) | _conv(f"{name}.2.0", 4 * c, n, 3) | _conv(f"{name}.4", b, c, 3)
    return shapes | _conv(f"{name}.6.0", 4 * a, b, 3) | _conv(f"{name}.8", m, a, 3)


def parameters(divisor: int = 1) -> Shapes:
    """Return the name and shape of every parameter of the published network with its widths divided by ``divisor``."""
    n, m, a, b, c, s = (width // divisor for width in (192, 320, 288, 256, 224, 32))
    middle, code = 128 // divisor, 96 // divisor
    shapes: Shapes = {}
    for i, (inputs, outputs) in enumerate(((3, n), (n, n), (n, n), (n, m))):
        name = f"basic_E.{i}"
        shapes |= _conv(f"{name}.conv_groups.0", outputs, inputs, 5) | _gdn(f"{name}.conv_groups.1", outputs)
        shapes |= _affine(name, outputs)
    for i, (inputs, outputs) in enumerate(((m, n), (n, n), (n, n), (n, s))):
        name = f"basic_D.{i}"
        shapes |= {f"{name}.conv_groups.0.weight": (inputs, outputs, 5, 5), f"{name}.conv_groups.0.bias": (outputs,)}
        shapes |= _gdn(f"{name}.conv_groups.1", outputs) | _affine(name, inputs)
    for name, channels, window in (("g_a1.2", n, 8), ("g_a2.2", m, 4), ("g_s0.0", m, 4), ("g_s1.0", n, 8)):
        shapes |= _attention(name, channels, window)
    shapes |= _conv("g_s1.3", 3, s) | _stack("h_a", m, m, a, b, c, n)
    shapes |= _subpixel("h_mean_s", n, a, b, c, m) | _subpixel("h_scale_s", n, a, b, c, m)
    shapes |= _pointwise("g_ab", n, middle, code, code) | _pointwise("g_sb", code, middle, n, n)
    shapes |= _pointwise("g_ab2", m, n, middle, code) | _pointwise("g_sb2", code, middle, n, m)
    widths = [width // divisor for width in (224, 176, 128, 64, 32)]
    for i in range(10):
        shapes |= _stack(f"cc_mean_transforms.{i}", m + s * min(i, 5), *widths)
        shapes |= _stack(f"cc_scale_transforms.{i}", m + s * min(i, 5), *widths)
        shapes |= _stack(f"lrp_transforms.{i}", m + s * min(i + 1, 6), *widths)
    for name, channels in (("dyn_encoder", n), ("dyn_decoder", n), ("dyn_enc_hyper", m)):
        shapes |= _rat(name, channels)
    shapes |= _rat("dyn_dec_hyper_means", m) | _rat("dyn_dec_hyper_scales", m)
    for name, channels in (("entropy_bottleneck", n), ("entropy_bottleneck_b", code), ("entropy_bottleneck_b2", code)):
        shapes |= _bottleneck(name, channels)
    return shapes


def buffers() -> Shapes:
    """Return the name and shape of every buffer of the published network."""
    shapes: Shapes = {}
    for name in parameters():
        if name.endswith((".beta", ".gamma")):
            shapes |= {f"{name}_reparam.pedestal": (1,), f"{name}_reparam.lower_bound.bound": (1,)}
        if name.endswith(".relative_position_bias_table"):
            tokens = 64 if name.startswith(("g_a1", "g_s1")) else 16
            shapes[name.replace("bias_table", "index")] = (tokens, tokens)
    tables: Shapes = {f"_{table}": (0,) for table in ("offset", "quantized_cdf", "cdf_length")}
    tables |= {"likelihood_lower_bound.bound": (1,)}
    for name in ("entropy_bottleneck", "entropy_bottleneck_b", "entropy_bottleneck_b2"):
        shapes |= {f"{name}.{part}": shape for part, shape in tables.items()} | {f"{name}.target": (3,)}
    conditional: Shapes = tables | {"scale_table": (0,), "scale_bound": (1,), "lower_bound_scale.bound": (1,)}
    return shapes | {f"gaussian_conditional.{part}": shape for part, shape in conditional.items()}


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the blocks that official files store twice, under both names."""
    copies = {
        copy + name.removeprefix(block): tensor
        for name, tensor in tensors.items()
        for block, copy in DOUBLES.items()
        if name.startswith(f"{block}.")
    }
    return tensors | copies


def golden_weights(divisor: int, salt: str) -> dict[str, Tensor]:
    """Return the weights of a golden file (specification, section 8), each a function of its name."""
    return {name: _golden(f"{salt}:{name}", name, shape) for name, shape in parameters(divisor).items()}


def _golden(seed: str, name: str, shape: tuple[int, ...]) -> Tensor:
    r = np.random.RandomState(zlib.crc32(seed.encode())).standard_normal(shape)
    return torch.from_numpy(_value(name, name.split(".")[-1], r).astype(np.float32))


def _value(name: str, last: str, r: np.ndarray) -> np.ndarray:
    if last == "gamma":
        return 0.3 * np.eye(len(r)) + 0.01 * np.abs(r)
    if last == "beta":
        return 1 + 0.1 * np.abs(r)
    if last == "quantiles":
        return np.array([-10.0, 0.0, 10.0]) + 0.3 * r
    if last.startswith("_matrix"):
        return math.log(math.expm1(1 / 10 ** (1 / 5) / (3, 3, 3, 3, 1)[int(last[-1])])) + 0.1 * r
    if last.startswith(("_bias", "_factor")):
        return 0.3 * np.tanh(r) if last.startswith("_bias") else 0.1 * r
    if last == "relative_position_bias_table":
        return 0.2 * r
    if last == "bias":
        scale = name.startswith("cc_scale_transforms.") and name.endswith(".8.bias")
        return 0.05 * r + (1.0 if scale else 0.5 if name == "g_s1.3.bias" else 0.0)
    return r / math.sqrt(math.prod(r.shape[1:])) * (0.4 if name == "g_s1.3.weight" else 1.0)
