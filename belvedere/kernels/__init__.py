"""The backbone: one public function per op; models call these and never ask for a device or a library."""

from belvedere.kernels.attention import attend
from belvedere.kernels.concat import Accumulated, concat_add, concat_begin, concat_end
from belvedere.kernels.depthwise import depthwise_packed, depthwise_residual
from belvedere.kernels.gates import gated_mlp
from belvedere.kernels.norms import (
    Norm,
    gated_residual,
    gated_residual_norm,
    modulate_norm,
    normalise,
    residual_time_norm,
    rms_norm,
    time_norm,
)
from belvedere.kernels.packed import Packed
from belvedere.kernels.rays import RayDecoder, Rays, render_factored, renders_in_one_pass
from belvedere.kernels.region import region_filter
from belvedere.kernels.rope import cell_centres, qk_norm_rope, rotate_pairs
from belvedere.kernels.volume import Composited, composite, distortion, ray_weights, sample_grid

__all__ = [
    "Accumulated",
    "Composited",
    "Norm",
    "Packed",
    "RayDecoder",
    "Rays",
    "attend",
    "cell_centres",
    "composite",
    "concat_add",
    "concat_begin",
    "concat_end",
    "depthwise_packed",
    "depthwise_residual",
    "distortion",
    "gated_mlp",
    "gated_residual",
    "gated_residual_norm",
    "modulate_norm",
    "normalise",
    "qk_norm_rope",
    "ray_weights",
    "region_filter",
    "render_factored",
    "renders_in_one_pass",
    "residual_time_norm",
    "rms_norm",
    "rotate_pairs",
    "sample_grid",
    "time_norm",
]
