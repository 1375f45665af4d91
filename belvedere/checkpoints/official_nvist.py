"""NViST's published names under ours and back; widths are read from shapes, the size of pictures from the positions."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.vit import position_codes

NAMES = (
    ("encoder.cls_token", "encoder.class_token"),
    ("encoder.patch_embed.proj.", "encoder.embed."),
    ("decoder.output_token", "decoder.token"),
    ("decoder.encoded_patches_pos_embed", "decoder.memory_positions"),
    ("decoder.camera_params_embed.", "decoder.conditioning."),
    ("decoder.decoder_out_norm.0.", "decoder.plane_heads.norm."),
    ("decoder.decoder_vector_norm.0.", "decoder.line_heads.norm."),
    ("decoder.decoder_pred.", "decoder.plane_heads.linears."),
    ("decoder.decoder_vector_pred.", "decoder.line_heads.linears."),
    ("renderer.rgb_matrix.1.", "field_decoder.colour_in."),
    ("renderer.rgb_mlp.", "field_decoder.colour_mlp."),
    (".adaLN_modulation.1.", ".modulation."),
    (".attn.proj.", ".attention.out."),
    (".attn.", ".attention."),
    (".mlp.fc1.", ".mlp.project_in."),
    (".mlp.fc2.", ".mlp.project_out."),
)
"""Parts of official names, and ours."""
_POSITIONS = {"encoder": "encoder.pos_embed", "decoder": "decoder.decoder_pos_embed"}
_LEFTOVERS = re.compile(r"encoder\.(norm\..*|mask_token|decoder_pos_embed)$")
"""Of the masked autoencoder: NViST's encoder keeps them and never uses them."""
_IDLE = re.compile(r"decoder\.blocks\.\d*[13579]\.norm_[kv]\.")
"""Norms of keys and values in blocks of self-attention, where adaLN takes their place."""
_ADALN = "decoder.blocks.0.adaLN_modulation.1.weight"
_UNTOLD = ("near", "far", "encoder_heads", "decoder_heads", "input_norm", "half_side", "padding", "samples")
"""Fields of our config that a file of weights does not tell."""
_HEAD = 64
"""Channels of a head in the published network."""


def nvist_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official NViST state dict (or gradients by the same names) under our names.

    What the official network stores and never uses is dropped, and so are its fixed positions, which ours evaluates.
    """
    adaptive = any(".adaLN_modulation." in name for name in official)
    ours: dict[str, Tensor] = {}
    for name, tensor in official.items():
        idle = adaptive and _IDLE.match(name)
        if idle or _LEFTOVERS.match(name) or name in _POSITIONS.values():
            continue
        new = name
        for theirs, mine in NAMES:
            new = new.replace(theirs, mine)
        if new in ours:
            raise InputError(f"official weights hold {name} under two names: the file is inconsistent")
        ours[new] = tensor
    return ours


def nvist_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` checked: those of our config that a file does not tell, ``near`` and ``far`` among them."""
    if unknown := [field for field in fields if field not in _UNTOLD]:
        raise InputError(f"NViST field {unknown[0]!r}: the file tells all but {', '.join(_UNTOLD)}; leave it out")
    if "near" not in fields or "far" not in fields:
        raise InputError(
            "NViST weights do not say between which distances they were trained to render: "
            'pass config={"near": ..., "far": ...}, those of the data set they were trained on'
        )
    return dict(fields)


def infer_nvist(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of our config that official weights of any width tell.

    Heads are those of 64 channels each, as published, and None for a width that is no multiple of them: then name them.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = tuple(weights[name].shape) if name in weights else ()
        if len(found) != axes or 0 in found:
            raise InputError(f"these are not NViST weights: {name} is missing or has another form")
        return found

    dim, _, patch, _ = shape("encoder.patch_embed.proj.weight", 4)
    for name in _POSITIONS.values():
        shape(name, 3)
    rows, columns = _grid(weights[_POSITIONS["encoder"]])
    lines = shape("decoder.decoder_vector_pred.0.weight", 2)[0]  # patch times channels
    volume_patch = shape("decoder.decoder_pred.0.weight", 2)[0] // lines
    hidden, features = shape("renderer.rgb_matrix.1.weight", 2)
    encoded = shape("renderer.rgb_mlp.0.weight", 2)[1] - hidden
    numbers = shape("decoder.camera_params_embed.0.weight", 2)[1]
    focal = numbers % 2 == 0  # one number gives 1 + 2 frequencies, two give twice as many
    heads = None if dim % _HEAD else dim // _HEAD
    return {
        "image": [rows * patch, columns * patch],
        "patch": patch,
        "dim": dim,
        "encoder_depth": _depth(weights, "encoder"),
        "encoder_heads": heads,
        "encoder_mlp_ratio": shape("encoder.blocks.0.mlp.fc1.weight", 2)[0] / dim,
        "decoder_depth": _depth(weights, "decoder"),
        "decoder_heads": heads,
        "decoder_mlp_ratio": shape("decoder.blocks.0.mlp.fc1.weight", 2)[0] / dim,
        "resolution": _side(weights[_POSITIONS["decoder"]]) * volume_patch,
        "volume_patch": volume_patch,
        "density": lines // max(volume_patch, 1) - features // 3,
        "colour": features // 3,
        "hidden": hidden,
        "direction_frequencies": (encoded - 3) // 6,
        "camera_frequencies": (numbers // (2 if focal else 1) - 1) // 2,
        "focal": focal,
        "conditioning": "adaln" if _ADALN in weights else "concat",
    }


def _depth(weights: Mapping[str, Any], part: str) -> int:
    return len({name.split(".")[2] for name in weights if name.startswith(f"{part}.blocks.")})


def _grid(positions: Tensor) -> tuple[int, int]:
    """Return rows and columns of the grid whose sin-cos codes these are: (1, 1 + n, c), the first of them 0."""
    count = positions.shape[1] - 1
    for columns in range(1, count + 1):
        if count % columns == 0 and _equal(positions, count // columns, columns, 0.0):
            return count // columns, columns
    raise InputError("encoder.pos_embed are not the sin-cos positions of a grid, which is all this network can have")


def _side(positions: Tensor) -> int:
    """Return the tokens a side of a plane, from the positions (1, 1 + 3 side (side + 1), c) of the volume's tokens."""
    count = positions.shape[1] - 1
    side = int((count / 3) ** 0.5)
    if 3 * side * (side + 1) != count or not _equal(positions, 3 * side, side + 1, 0.5):
        raise InputError("decoder.decoder_pos_embed are not the published sin-cos positions, which are all it can have")
    return side


def _equal(positions: Tensor, rows: int, columns: int, start: float) -> bool:
    dim = positions.shape[2]
    if dim % 4:
        return False
    codes = _table(rows, columns, dim, start)
    return torch.allclose(positions.float(), codes, rtol=0, atol=1e-5 if positions.dtype == torch.float32 else 1e-2)


def _table(rows: int, columns: int, dim: int, start: float) -> Tensor:
    """Return positions as the official network stores them: (1, 1 + rows columns, dim), the first row 0."""
    first = torch.zeros(1, dim, device="cpu")
    return torch.cat((first, position_codes(rows, columns, dim, first, start)))[None]


def to_official(model: NViST) -> dict[str, Tensor]:
    """Return the weights of a network of the published form under the official names, all that its code stores.

    Tensors that it stores and never uses are as it begins with. Raises ``InputError`` for what it cannot have: another
    form than "vector_matrix", learned positions.
    """
    config: Any = model.config
    if config.form != "vector_matrix" or config.positions != "sincos":
        raise InputError(f"form {config.form}, positions {config.positions}: the official network has no such")
    official = {}
    for name, tensor in model.state_dict().items():
        for theirs, mine in NAMES:
            name = name.replace(mine, theirs)
        official[name] = tensor
    rows, columns = (side // config.patch for side in config.image)
    side, dim = config.resolution // config.volume_patch, config.dim
    official |= {
        "encoder.pos_embed": _table(rows, columns, dim, 0.0),
        "encoder.decoder_pos_embed": _table(rows, columns, 512, 0.0),
        "encoder.mask_token": torch.zeros(1, 1, 512),
        "decoder.decoder_pos_embed": _table(3 * side, side + 1, dim, 0.5),
    }
    idle = ["encoder.norm"]
    if config.conditioning == "adaln":
        idle += [f"decoder.blocks.{i}.norm_{of}" for i in range(1, config.decoder_depth, 2) for of in "kv"]
    for name in idle:
        official |= {f"{name}.weight": torch.ones(dim), f"{name}.bias": torch.zeros(dim)}
    return official
