"""Counter-based randomness: a sample's numbers are functions of what they are for."""

import pytest
import torch

from belvedere.seeds import BatchRng
from tests.conftest import DEFAULTS, by_default

SHAPES = {5: (3, 2, 4), 9: (1,), 2: (0, 7), 70: (3, 8, 8)}


def test_ragged_noise_is_what_every_sample_draws_alone() -> None:
    together = BatchRng(7, 3, SHAPES).ragged("noise", list(SHAPES.values()))
    backwards = BatchRng(7, 3, reversed(SHAPES)).ragged("noise", list(SHAPES.values())[::-1])
    for (sample, shape), row, again in zip(SHAPES.items(), together, backwards[::-1], strict=True):
        assert row.shape == shape and row.dtype == torch.float32
        assert torch.equal(row, BatchRng(7, 3, [sample]).normal("noise", shape)[0])
        assert torch.equal(row, again)


def test_ragged_noise_differs_by_seed_step_sample_and_name() -> None:
    drawn = [
        BatchRng(seed, step, [sample]).ragged(name, [(4,)])[0]
        for seed, step, sample, name in ((7, 3, 5, "a"), (8, 3, 5, "a"), (7, 4, 5, "a"), (7, 3, 6, "a"), (7, 3, 5, "b"))
    ]
    assert len(torch.stack(drawn).unique(dim=0)) == 5


@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_of_pytorch_change_no_number(default: str) -> None:
    def drawn() -> list[torch.Tensor]:
        noise = BatchRng(7, 3, SHAPES)
        return [noise.normal("a", (2, 3)), noise.uniform("b"), *noise.ragged("c", list(SHAPES.values()))]

    want = drawn()
    with by_default(default):
        found = drawn()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, want, strict=True))
