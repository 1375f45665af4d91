"""The world the package carries: toys on a ground, drawn by closed-form ray casting, licence-free."""

from belvedere.data.toybox.dataset import HELD_OUT, KINDS, Toybox

__all__ = ["HELD_OUT", "KINDS", "Toybox"]
