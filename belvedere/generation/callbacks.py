"""What samplers call after every update: it may look, stop them by raising, or change the sample."""

from collections.abc import Callable

from torch import Tensor

Callback = Callable[[int, float, Tensor, Tensor], Tensor | None]
"""Called with the update's number, the time reached, the sample there, and what the network told last; what it returns
takes the sample's place, unless it is None."""


def tell(callback: Callback | None, step: int, t: float, x: Tensor, seen: Tensor) -> Tensor:
    """Return the sample to go on with: what ``callback`` makes of ``x``, or ``x`` itself."""
    told = callback(step, t, x, seen) if callback else None
    return x if told is None else told.to(x)
