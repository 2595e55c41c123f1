"""Random values from the operating system's cryptographic generator.

torch's own generators can be predicted from their output, and a CPU generator has seeds of 32 bits,
so noise from them hides nothing from somebody who tries the seeds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch


def uniform(count: int) -> torch.Tensor:
    """``count`` float64 values above 0 and below 1, of 52 random bits each."""
    words = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
    return ((words & (2**52 - 1)).double() + 0.5) / 2**52


def normal(shape: Sequence[int]) -> torch.Tensor:
    """Standard normal values in float64.

    The sum of four draws over 2, so that the rounding of a single Box-Muller draw cannot be
    undone (Holohan and Braghin, arXiv 2107.10138, section 5.1, with n = 2, as opacus does it).
    """
    count = math.prod(shape)
    total = torch.zeros(count, dtype=torch.float64)
    for _ in range(4):
        radius, angle = uniform(2 * count).view(2, count)
        total += (-2 * radius.log()).sqrt() * (2 * torch.pi * angle).cos()
    return (total / 2).view(tuple(shape))
