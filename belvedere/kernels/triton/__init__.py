"""The ops of the backbone as Triton kernels: importing this registers them as ``torch.ops.belvedere.*``.

Each file holds the kernels of one op, the functions that launch them, and their registration with fake and autograd,
so that ``torch.compile(fullgraph=True)`` sees one operation. Nothing here is called by a model: the public functions
of ``belvedere.kernels`` come here when ``backends.fused`` says so. No kernel uses atomics: a row's result depends on
nothing but the row, and a sum over rows is made in a fixed order.
"""

from types import ModuleType

from belvedere.kernels.triton import attention, concat, gates, norms, rays, region, residual, residual_norm, rope

MODULES: tuple[ModuleType, ...] = (attention, gates, norms, residual, residual_norm, rope, concat, region, rays)
"""Every file of kernels."""
