"""Singular values by the Gram matrix are those of a full decomposition, as far as is promised."""

from __future__ import annotations

import pytest
import torch

from offsite.compress.decomposition import decompose
from offsite.compress.rank import largest


def falling(rows: int, columns: int, power: float) -> torch.Tensor:
    """A matrix whose i-th singular value is i to the power of ``-power``."""
    torch.manual_seed(0)
    size = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(side, size))[0] for side in (rows, columns))
    weight: torch.Tensor = (u * torch.arange(1, size + 1) ** -power) @ v.T
    return weight


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_the_parts_are_those_of_a_full_decomposition(shape: tuple[int, int], power: float) -> None:
    weight = falling(*shape, power)
    u, s, v = decompose(weight)
    assert u.shape == (shape[0], 64) and s.shape == (64,) and v.shape == (64, shape[1])
    torch.testing.assert_close(u * s @ v, weight, atol=1e-6, rtol=0)
    expected = torch.linalg.svdvals(weight)
    large = expected > 1e-3 * expected[0]
    torch.testing.assert_close(s[large], expected[large], atol=1e-6, rtol=1e-3)
    short = u.T @ u if shape[0] <= shape[1] else v @ v.T
    torch.testing.assert_close(short, torch.eye(64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_the_largest_give_the_best_approximation(power: float, rank: int) -> None:
    weight = falling(96, 64, power)
    up, down = largest(weight, rank)
    best = torch.linalg.svdvals(weight)[rank:].norm()  # Eckart and Young
    assert (weight - up @ down).norm() <= best + (3e-4 if power == 3 else 1e-5) * weight.norm()


def test_a_matrix_of_zeros_has_parts_that_are_finite() -> None:
    u, s, v = decompose(torch.zeros(4, 6))
    assert u.isfinite().all() and v.isfinite().all() and not s.any()
