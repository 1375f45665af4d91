"""Plain functions as one operation: the same numbers and gradients, nothing for what is no variable."""

import torch
from torch import Tensor

from belvedere.kernels.opaque import opaque


def scaled(a: Tensor, b: Tensor, c: Tensor, places: Tensor, factor: float) -> Tensor:
    return (a * b + c)[places.tolist()].T * factor  # reads on the host, and its result does not lie in order


operation = opaque("scaled_for_a_test", scaled, like=0)


def inputs() -> tuple[Tensor, ...]:
    a, b, c = (torch.randn(3, 3, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3))
    return a, b, c, torch.tensor([2, 0, 1])


def test_numbers_and_gradients_are_those_of_the_function() -> None:
    *variables, places = inputs()
    got, want = (of(*variables, places, 2.0) for of in (operation, scaled))
    assert torch.equal(got, want) and got.is_contiguous()
    direction = torch.arange(9.0).view(3, 3)
    pulled = (torch.autograd.grad(result, variables, direction) for result in (got, want))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*pulled, strict=True))


def test_it_is_an_operation_as_pytorch_wants_one() -> None:
    torch.library.opcheck(torch.ops.belvedere.scaled_for_a_test, (*inputs(), 2.0))


def test_a_compiler_takes_it_whole() -> None:
    run = torch.compile(operation, fullgraph=True, backend="eager")
    assert torch.equal(run(*inputs(), 0.5), scaled(*inputs(), 0.5))
