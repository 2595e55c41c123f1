"""Spread over seeds, and paired bootstrap intervals from per-item values.

Two models scored on the same items differ by the mean of the items' differences. Resampling items
(and with them both scores) says how far that mean depends on which items the set happens to hold;
it says nothing of other data sets, other seeds or other offers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from offsite.errors import OffsiteError

COMPARISONS = {
    "plug_in - emulator_tuned": ("plug_in", "emulator_tuned"),
    "plug_in - full_tuned": ("plug_in", "full_tuned"),
}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of one number over runs.

    Attributes:
        std: None for a single run.
    """

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Interval:
    """A mean difference with a percentile interval.

    Attributes:
        mean: first minus second, signed so that larger is better for the first.
        low, high: bounds of the interval.
        level: its share of the resamples, such as 0.95.
        items: how many paired items.
    """

    mean: float
    low: float
    high: float
    level: float
    items: int

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1).

    Raises:
        OffsiteError: no value.
    """
    if not values:
        raise OffsiteError("There is no value to average; give at least one run.")
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else None
    return Spread(float(array.mean()), deviation, len(array))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    higher_is_better: bool = True,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of the mean paired difference (Efron and Tibshirani, 1993).

    Args:
        first, second: per-item values of two models, in the same order.
        higher_is_better: false turns the sign, so that larger is better for the first.
        resamples: how many; each draws as many items as there are, with replacement.

    Raises:
        OffsiteError: no items, different numbers of items, or values that are not finite.
    """
    if len(first) != len(second) or not first:
        raise OffsiteError(
            f"{len(first)} and {len(second)} items cannot be paired; score both models on the same "
            "data, and keep the items."
        )
    if not 0 < level < 1 or resamples < 1:
        raise OffsiteError("An interval needs a level between 0 and 1 and at least one resample.")
    sign = 1.0 if higher_is_better else -1.0
    gaps = sign * (np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))
    if not np.isfinite(gaps).all():
        raise OffsiteError("Items that are not finite numbers cannot be compared.")
    low, high = _bounds(gaps.tobytes(), level, resamples, seed)
    return Interval(float(gaps.mean()), low, high, level, len(gaps))


@lru_cache(maxsize=256)  # one table after another asks for the same
def _bounds(content: bytes, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentiles of the resampled means of float64 values."""
    gaps = np.frombuffer(content)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // len(gaps))  # about 32 MB of indices at a time
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = generator.integers(0, len(gaps), (stop - start, len(gaps)))
        means[start:stop] = gaps[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(
    details: Mapping[str, Mapping[str, Any]], higher_is_better: bool, **options: Any
) -> dict[str, Interval]:
    """Intervals of ``plug_in - emulator_tuned`` and ``plug_in - full_tuned`` of one run.

    Args:
        details: for each score its ``items``, as the lab writes them; a comparison whose items are
            absent is left out.
        options: of :func:`paired_bootstrap`.
    """
    found = {}
    for name, (one, other) in COMPARISONS.items():
        a, b = details.get(one, {}).get("items"), details.get(other, {}).get("items")
        if a and b and len(a) == len(b):
            found[name] = paired_bootstrap(a, b, higher_is_better=higher_is_better, **options)
    return found


def over_seeds(
    runs: Sequence[Mapping[str, Mapping[str, Any]]], higher_is_better: bool, **options: Any
) -> dict[str, Interval]:
    """Like :func:`compare`, for the mean over several seeds of each item's values.

    Args:
        runs: the details of each seed, on the same items.
    """
    averaged: dict[str, dict[str, Any]] = {}
    for score in {name for run in runs for name in run}:
        rows = [run.get(score, {}).get("items") or [] for run in runs]
        if rows[0] and all(len(row) == len(rows[0]) for row in rows):
            averaged[score] = {"items": np.mean(np.asarray(rows, np.float64), axis=0).tolist()}
    return compare(averaged, higher_is_better, **options)
