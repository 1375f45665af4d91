"""The ops of the backbone as Triton kernels: importing this registers them as ``torch.ops.belvedere.*``.

Each file holds the kernels of one op, the functions that launch them, and their registration with fake and autograd,
so that ``torch.compile(fullgraph=True)`` sees one operation. Nothing here is called by a model: the public functions
of ``belvedere.kernels`` come here when ``backends.fused`` says so. A row's result depends on
nothing but the row, but for attention that is split, and a sum over rows is made in a fixed order, but for texels of
volumes that rays are trained through (``rays_backward``): no other kernel uses atomics.
"""

from types import ModuleType

from belvedere.kernels.triton import (
    attention,
    attention_split,
    concat,
    depthwise,
    gates,
    norms,
    rays,
    region,
    residual,
    residual_norm,
    rope,
)

MODULES: tuple[ModuleType, ...] = (
    attention,
    attention_split,
    gates,
    norms,
    residual,
    residual_norm,
    rope,
    concat,
    depthwise,
    region,
    rays,
)
"""Every file of kernels."""
