"""Quaternions and matrices: against the exponential map, at half turns too, and half-way between two rotations."""

import math

import pytest
import torch
from torch import Tensor

from belvedere.data.rotations import matrix_from_quaternion, quaternion_from_matrix, slerp


def about(axis: list[float], angle: float) -> Tensor:
    """Rotation matrix about an axis, by the matrix exponential."""
    x, y, z = (
        angle * v for v in torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    )
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


AXES = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, -2.0, 0.5], [-0.3, 0.2, 4.0]]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.7, -2.9, math.pi, math.pi - 1e-7])
def test_matrix_and_quaternion_agree_with_the_exponential(axis: list[float], angle: float) -> None:
    rotation = about(axis, angle)
    quaternion = quaternion_from_matrix(rotation)
    assert math.isclose(float(quaternion.norm()), 1, rel_tol=1e-12)
    assert math.isclose(abs(float(quaternion[0])), abs(math.cos(angle / 2)), abs_tol=1e-9)
    torch.testing.assert_close(matrix_from_quaternion(quaternion), rotation, rtol=0, atol=1e-12)


def test_quaternions_of_any_length_and_in_rows() -> None:
    quaternions = torch.stack([quaternion_from_matrix(about(axis, 1.1)) for axis in AXES])
    got = matrix_from_quaternion(-3 * quaternions)
    torch.testing.assert_close(got, torch.stack([about(axis, 1.1) for axis in AXES]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("angle", [1e-12, 0.4, 3.0])
def test_slerp_turns_at_constant_speed(t: float, angle: float) -> None:
    first = about([0.2, 1.0, -0.4], 1.3)
    got = slerp(first, about([1.0, -2.0, 0.5], angle) @ first, t)
    torch.testing.assert_close(got, about([1.0, -2.0, 0.5], t * angle) @ first, rtol=0, atol=1e-11)


def test_slerp_takes_the_shorter_way() -> None:
    got = slerp(about([0, 0, 1.0], 0.0), about([0, 0, 1.0], math.radians(350)), 0.5)
    torch.testing.assert_close(got, about([0, 0, 1.0], math.radians(-5)), rtol=0, atol=1e-12)
