"""Golden cases of FiTv2: networks in the padded layout, extrapolation, guidance, packing, position tables."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from belvedere.checkpoints.official import load_official
from belvedere.checkpoints.official_fitv2 import extrapolation_name
from belvedere.generation.extrapolation import MODES, frequencies, grid_rotations
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.guidance import combine, cosine_power_weight
from belvedere.generation.tokens import unpatchify
from tests import parity_transport

Cases = Iterator[tuple[str, Tensor, Tensor]]


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """Yield (case, ours, official) for everything the file holds."""
    if "runs" in description:
        yield from parity_transport.run(description, tensors)
    elif "entries" in description:
        yield from _tables(tensors)
    else:
        state = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")}
        model = load_official("fitv2", state, description["config"])
        yield (
            "parameters",
            torch.tensor(sum(p.numel() for p in model.parameters())),
            torch.tensor(description["n_params"]),
        )
        with torch.no_grad():
            yield from _network(model, description, tensors)


def _network(model: FiTv2, description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    for case in sorted({name.split(".")[0] for name in tensors if name.startswith("base")}):
        yield f"{case}.out", _call(model, case, tensors), tensors[f"{case}.out"]
        yield from _packed(model, case, tensors)
    yield from _guidance(model, tensors)
    yield from _pack(model, tensors)
    yield from _extrapolation(model, description, tensors)
    yield "unpatchify", unpatchify(tensors["unpatchify.in"][0], (4, 3), 2)[None], tensors["unpatchify.out_h8_w6"]


def _call(model: FiTv2, case: str, tensors: dict[str, Tensor], **options: Any) -> Tensor:
    return model(*(tensors[f"{case}.{name}"] for name in ("x", "t", "y", "grid", "mask")), **options)


def _sizes(tensors: dict[str, Tensor], case: str) -> list[tuple[int, int]]:
    return [(h, w) for [[h, w]] in tensors[f"{case}.size"].tolist()]


def _packed(model: FiTv2, case: str, tensors: dict[str, Tensor]) -> Cases:
    """The same images behind one another, without padding, and one by one."""
    x, t, y, want = (tensors[f"{case}.{name}"] for name in ("x", "t", "y", "out"))
    sizes = _sizes(tensors, case)
    tokens = [image[: h * w] for image, (h, w) in zip(x, sizes, strict=True)]
    golden = torch.cat([image[: h * w] for image, (h, w) in zip(want, sizes, strict=True)])
    yield f"{case}.out (packed)", model(torch.cat(tokens), t, y, sizes=sizes), golden
    alone = [model(x, t[i : i + 1], y[i : i + 1], sizes=[sizes[i]]) for i, x in enumerate(tokens)]
    yield f"{case}.out (one by one)", torch.cat(alone), golden


def _guidance(model: FiTv2, tensors: dict[str, Tensor]) -> Cases:
    x, t = tensors["cfg.x"], tensors["cfg.t"]
    half = len(x) // 2
    both = {**tensors, "cfg.x": torch.cat((x[:half], x[:half]))}
    conditional, unconditional = _call(model, "cfg", both).chunk(2)
    for name, want in tensors.items():
        if match := re.fullmatch(r"cfg\.out_scale([\d.]+)_pow([\d.]+)", name):
            scale, power = float(match[1]), float(match[2])
            weights = [cosine_power_weight(time, scale, power) if power else scale for time in t[:half].tolist()]
            guided = [
                combine(c, u, w, channels=3 * model.config.patch**2)
                for c, u, w in zip(conditional, unconditional, weights, strict=True)
            ]
            yield name, torch.stack(guided), want[:half]


def _pack(model: FiTv2, tensors: dict[str, Tensor]) -> Cases:
    """Two images in one row: the official output is multiplied by their numbers, ours is not."""
    out, ids = _call(model, "pack", tensors), tensors["pack.mask"]
    yield "pack.out (times the ids)", out * ids[..., None], tensors["pack.out"]
    for i in (0, 1):
        yield f"pack.alone{i}", out[ids == i + 1][None], tensors[f"pack.alone{i}"]


def _extrapolation(model: FiTv2, description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    model.register_to_config(trained_side=4)
    for case in ("ext", "online"):
        for name, want in tensors.items():
            if match := re.fullmatch(rf"{case}\.out_([a-z0-9-]+?)(?:_(max|dec))?", name):
                ours = extrapolation_name(match[1], match[2] == "dec")
                sizes = _sizes(tensors, case)
                yield name, _call(model, case, tensors, sizes=sizes, extrapolation=ours), want
                if case == "ext":
                    yield from _axis_frequencies(model, sizes[0], match[1], match[2], ours, tensors)
    model.register_to_config(trained_side=16)


def _axis_frequencies(
    model: FiTv2, size: tuple[int, int], mode: str, kind: str | None, name: str, tensors: dict[str, Tensor]
) -> Cases:
    if kind:
        head_dim = model.config.dim // model.config.heads
        down, right, _ = frequencies(size, head_dim, model.config.rope_theta, 4, name)
        yield f"ext.freqs_h_{mode}_{kind}", down, tensors[f"ext.freqs_h_{mode}_{kind}"]
        yield f"ext.freqs_w_{mode}_{kind}", right, tensors[f"ext.freqs_w_{mode}_{kind}"]


def _tables(tensors: dict[str, Tensor]) -> Cases:
    scalars = {"mscale": "yarn", "proportion1": "ntk-pro1", "proportion2": "ntk-pro2"}
    for name, want in tensors.items():
        match = re.fullmatch(r"hd(\d+)_th(\d+)(?:_L(\d+)_(\d+)x(\d+))?\.(\S+)", name)
        if not match:
            continue
        head_dim, theta, side, h, w = (int(part or 16) for part in match.groups()[:5])
        what = match[6].split(".")
        if what[0] in scalars:
            yield name, torch.tensor([frequencies((h, w), head_dim, theta, side, scalars[what[0]])[2]]), want
        else:
            ours = extrapolation_name(what[0], "dec" in what)
            down, right, _ = frequencies((h, w), head_dim, theta, side, ours)
            yield name, right if what[-1] == "freqs_w" else down, want
    right, down = tensors["grid_sel"].long()
    for mode in MODES:
        official = next(
            name for name in tensors if name.startswith("cos.") and extrapolation_name(name[4:], False) == mode
        )
        ours = grid_rotations((20, 20), 72, 10000.0, 16, extrapolation_name(official[4:], True))
        for part, table in zip(("cos", "sin"), ours, strict=True):
            chosen = table[down * 20 + right, 0].repeat_interleave(2, -1)
            yield f"{part}.{official[4:]}", chosen, tensors[f"{part}.{official[4:]}"]
