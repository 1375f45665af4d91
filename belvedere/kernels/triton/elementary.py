"""Functions of single numbers, in few instructions: kernels that wait for memory have no time for more.

``reciprocal`` is one instruction of a GPU, which Triton would surround by others for numbers that do not occur here;
``tl.exp2`` is one as it stands, ``tl.exp`` is several.
"""

import triton
import triton.language as tl

from belvedere.kernels.triton.launch import INTERPRETED, helper

if INTERPRETED:  # which has no such instruction

    def reciprocal(x):
        """1 / x."""
        return 1.0 / x

else:

    @triton.jit
    def reciprocal(x):
        """1 / x within one unit in the last place, 0 where it is below 1.2e-38 (PTX ISA, rcp.approx.ftz.f32)."""
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@helper
def exp(x):
    """e to the power of x, off by |x| units in the last place."""
    return tl.exp2(x * 1.4426950408889634)


@helper
def normal_tail(x):
    """How much of the normal distribution lies beyond ``|x|``, and exp(-x^2 / 2), of which its density is a multiple.

    The tail is t Q(t) exp(-x^2 / 2) with t = 1 / (1 + 0.302 |x| / sqrt(2)) and Q of degree 8, fitted by least squares,
    reweighted until the largest relative error was smallest: 3e-8; float32's own roundings make it 5e-7, and 2e-6 where
    |x| is 6. By erf the kernels of gates would have 1.5 times the instructions, too many to keep up with the memory.
    """
    bell = tl.exp2(x * (x * -0.7213475204444817))
    t = reciprocal(1.0 + 0.21354624791835145 * tl.abs(x))
    tail = 0.2172981769 - 0.0602541695 * t
    tail = tail * t - 0.2116048
    tail = tail * t + 0.229997599
    tail = tail * t - 0.02129198365
    tail = tail * t + 0.0982158945
    tail = tail * t + 0.07681503
    tail = tail * t + 0.0856516895
    return (tail * t + 0.08517255) * t * bell, bell


@helper
def normal_share(x):
    """How much of the normal distribution lies below ``x``, and exp(-x^2 / 2)."""
    tail, bell = normal_tail(x)
    return tl.where(x < 0, tail, 1.0 - tail), bell


@helper
def logistic(x):
    """1 / (1 + exp(-x))."""
    return reciprocal(1.0 + exp(-x))
