"""Membership inference: does the tuned model show which texts it was tuned on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL, RESAMPLES = 0.95, 2000


@dataclass(frozen=True)
class Membership:
    """How well members are told from others by a score, smaller for members.

    Attributes:
        auc: chance that a member scores below another text; 0.5 is guessing.
        low, high: its percentile bootstrap interval (95%), members and others resampled.
        tpr: share of members found when 1% of the others are taken for members (Carlini et al.,
            arXiv 2112.03570, argue for this figure).
    """

    auc: float
    low: float
    high: float
    tpr: float


def membership(members: Sequence[float], others: Sequence[float], seed: int = 0) -> Membership:
    """The figures of an attack that takes texts of small scores for members."""
    inside, outside = np.asarray(members, float), np.asarray(others, float)
    draw = np.random.default_rng(seed)
    areas = [
        area(draw.choice(inside, len(inside)), draw.choice(outside, len(outside)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(areas, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    allowed = int(0.01 * len(outside))
    limit = np.sort(outside)[allowed]
    found = float((inside < limit).mean())
    return Membership(area(inside, outside), float(low), float(high), found)


def area(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of pairs in which the member has the smaller score; ties count half."""
    below = np.searchsorted(np.sort(outside), inside, side="right")
    strictly = np.searchsorted(np.sort(outside), inside, side="left")
    above = len(outside) - (below + strictly) / 2
    return float(above.mean() / len(outside))
