"""The sizes of NViST and of its pre-training: the published network and smaller ones, and what makes a config valid."""

from typing import Any

from belvedere.errors import InputError
from belvedere.synthesis.field import FORMS, MAX_CHANNELS, MAX_RESOLUTION, MAX_SIZES, PADDINGS
from belvedere.synthesis.vit import INPUT_NORMS

CHOICES = {
    "input_norm": tuple(INPUT_NORMS),
    "form": FORMS,
    "conditioning": ("adaln", "concat"),
    "positions": ("sincos", "learned"),
    "padding": PADDINGS,
    "background": ("black", "learned"),
}
"""Fields that are names, and the names they may have."""

LARGEST = {
    "patch": 256,
    "dim": 8192,
    "encoder_depth": 256,
    "encoder_heads": 256,
    "decoder_depth": 256,
    "decoder_heads": 256,
    "resolution": MAX_RESOLUTION,
    "volume_patch": 256,
    "density": MAX_SIZES["density"],
    "colour": MAX_SIZES["colour"],
    "hidden": MAX_SIZES["hidden"],
    "direction_frequencies": MAX_SIZES["frequencies"],
    "camera_frequencies": 16,
    "samples": 4096,
    "decoder_dim": 8192,
}
"""Fields that are integers of at least 1, of NViST or of MAE."""
RATIOS = ("encoder_mlp_ratio", "decoder_mlp_ratio")
MAX_SIDE = 4096
"""Of the pictures, in pixels."""
MAX_TOKENS = 65_536
"""Of a picture or of a volume."""

VARIANTS: dict[str, dict[str, Any]] = {
    "NViST": {"image": [160, 90], "patch": 5, "dim": 768, "resolution": 48, "volume_patch": 3}
    | {"encoder_depth": 12, "encoder_heads": 12, "decoder_depth": 12, "decoder_heads": 12},
    "NViST/2": {"image": [160, 90], "patch": 5, "dim": 384, "resolution": 48, "volume_patch": 3}
    | {"encoder_depth": 12, "encoder_heads": 6, "decoder_depth": 12, "decoder_heads": 6},
    "toybox": {"image": [64, 64], "patch": 4, "dim": 192, "resolution": 60, "volume_patch": 4, "focal": False}
    | {"encoder_depth": 4, "encoder_heads": 6, "encoder_mlp_ratio": 3.0, "positions": "learned", "padding": "border"}
    | {"decoder_depth": 6, "decoder_heads": 6, "decoder_mlp_ratio": 3.0, "half_side": 0.85, "samples": 48}
    | {"density": 6, "colour": 18, "hidden": 32, "background": "learned"},
}
"""The published network, the same at half its width, and ours."""

MAE_VARIANTS: dict[str, dict[str, Any]] = {
    "NViST": {"patch": 5, "dim": 768, "encoder_depth": 12, "encoder_heads": 12}
    | {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
    "NViST/2": {"patch": 5, "dim": 384, "encoder_depth": 12, "encoder_heads": 6}
    | {"decoder_dim": 256, "decoder_depth": 8, "decoder_heads": 8},
    "toybox": {"patch": 4, "dim": 192, "encoder_depth": 4, "encoder_heads": 6, "encoder_mlp_ratio": 3.0}
    | {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3},
}
"""The networks that pre-train the encoders of ``VARIANTS``, by the same names."""


def check_config(config: Any) -> None:
    """Raise ``InputError`` unless the fields of an NViST's config are known and fit together."""
    _check_fields(config)
    check_widths(config, "dim", ("encoder_heads", "decoder_heads"))
    _check_image(config)
    if config.resolution % config.volume_patch:
        raise InputError(f"resolution {config.resolution}: must be a multiple of volume_patch {config.volume_patch}")
    side = config.resolution // config.volume_patch
    if 3 * side * (side + 1) > MAX_TOKENS:
        raise InputError(f"resolution {config.resolution} in patches of {config.volume_patch}: too many tokens")
    if config.density + config.colour > MAX_CHANNELS:
        raise InputError(f"density {config.density}, colour {config.colour}: {MAX_CHANNELS} channels at most together")
    for field in ("near", "far", "half_side"):
        if not isinstance(config[field], int | float):
            raise InputError(f"{field} {config[field]!r}: must be a number")
    if not 0 <= config.near < config.far < float("inf"):
        raise InputError(f"near {config.near}, far {config.far}: give 0 <= near < far, in the scene's unit of length")
    if not 0 < config.half_side < float("inf"):
        raise InputError(f"half_side {config.half_side}: must be above 0")
    if not isinstance(config.focal, bool):
        raise InputError(f"focal {config.focal!r}: must be true or false")


def check_mae_config(config: Any) -> None:
    """Raise ``InputError`` unless the fields of a MAE's config are known and fit together."""
    _check_fields(config)
    check_widths(config, "dim", ("encoder_heads",))
    check_widths(config, "decoder_dim", ("decoder_heads",))


def check_widths(config: Any, width: str, heads: tuple[str, ...]) -> None:
    """Raise ``InputError`` unless the field ``width`` divides by 4, for sin-cos positions, and by each of ``heads``."""
    for field in heads:
        if config[width] % config[field]:
            raise InputError(f"{width} {config[width]}: must be a multiple of the {config[field]} {field}")
    if config[width] % 4:
        raise InputError(f"{width} {config[width]}: must be a multiple of 4")


def _check_fields(config: Any) -> None:
    for field in (field for field in CHOICES if field in config):
        if config[field] not in CHOICES[field]:
            raise InputError(f"{field} {config[field]!r}: choose from {', '.join(CHOICES[field])}")
    for field in (field for field in LARGEST if field in config):
        if not isinstance(config[field], int) or not 1 <= config[field] <= LARGEST[field]:
            raise InputError(f"{field} {config[field]!r}: must be an integer from 1 to {LARGEST[field]}")
    for field in (field for field in RATIOS if field in config):
        if not isinstance(config[field], int | float) or not 0 < config[field] <= 64:
            raise InputError(f"{field} {config[field]!r}: must be above 0 and at most 64")


def _check_image(config: Any) -> None:
    sides = config.image
    whole = isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides)
    if not whole or not all(1 <= side <= MAX_SIDE and side % config.patch == 0 for side in sides):
        raise InputError(f"image {sides!r}: must be [height, width], multiples of the patch of {config.patch} pixels")
    if sides[0] * sides[1] // config.patch**2 > MAX_TOKENS:
        raise InputError(f"image {list(sides)} in patches of {config.patch}: too many tokens, {MAX_TOKENS} at most")
