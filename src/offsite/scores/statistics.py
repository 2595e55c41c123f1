"""Spread over seeds, and paired bootstrap intervals from per-item values.

Two models scored on the same items differ by the mean of the items' differences, each weighted by
what it counts in the score (tokens of a row), where items count differently. Resampling items
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
    "plug_in - healed": ("plug_in", "healed"),
    "plug_in - full_tuned": ("plug_in", "full_tuned"),
    "plug_in - zero_shot": ("plug_in", "zero_shot"),
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
    weights: Sequence[float] | None = None,
    higher_is_better: bool = True,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of the mean paired difference (Efron and Tibshirani, 1993).

    Args:
        first, second: per-item values of two models, in the same order.
        weights: how much each item counts in the mean; None where all count alike.
        higher_is_better: false turns the sign, so that larger is better for the first.
        resamples: how many; each draws as many items as there are, with replacement.

    Raises:
        OffsiteError: no items, different numbers of items, values that are not finite, or weights
            that are not positive.
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
        raise OffsiteError("Items that are not finite numbers cannot be compared; leave them out.")
    shares = np.ones(len(gaps)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != gaps.shape or not (np.isfinite(shares) & (shares > 0)).all():
        raise OffsiteError(f"{len(gaps)} items need as many weights, each a number over 0.")
    if (shares == shares[0]).all():
        weights, mean = None, float(gaps.mean())
    else:
        mean = float(np.average(gaps, weights=shares))
    content = b"" if weights is None else shares.tobytes()
    low, high = _bounds(gaps.tobytes(), content, level, resamples, seed)
    return Interval(mean, low, high, level, len(gaps))


@lru_cache(maxsize=256)  # one table after another asks for the same
def _bounds(
    values: bytes, weights: bytes, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentiles of the resampled means of float64 values; without weights all count alike."""
    gaps, shares = np.frombuffer(values), np.frombuffer(weights)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // len(gaps))  # about 32 MB of indices at a time
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = generator.integers(0, len(gaps), (stop - start, len(gaps)))
        if len(shares):
            means[start:stop] = (gaps * shares)[drawn].sum(axis=1) / shares[drawn].sum(axis=1)
        else:
            means[start:stop] = gaps[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(
    details: Mapping[str, Mapping[str, Any]], higher_is_better: bool, **options: Any
) -> dict[str, Interval]:
    """The intervals of one run for every comparison in :data:`COMPARISONS`.

    Args:
        details: for each score its ``items`` and perhaps ``weights``, as the lab writes them; a
            comparison whose items are absent is left out, weights of one side alone do not count.
        options: of :func:`paired_bootstrap`.
    """
    found = {}
    for name, (one, other) in COMPARISONS.items():
        first, second = details.get(one, {}), details.get(other, {})
        a, b = first.get("items"), second.get("items")
        if a and b and len(a) == len(b):
            weights = _agreed([first, second])
            found[name] = paired_bootstrap(
                a, b, weights=weights, higher_is_better=higher_is_better, **options
            )
    return found


def _agreed(details: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The weights of the items, where all have the same ones."""
    weights = [list(one.get("weights") or ()) for one in details]
    return weights[0] if weights[0] and all(one == weights[0] for one in weights) else None


def over_seeds(
    runs: Sequence[Mapping[str, Mapping[str, Any]]], higher_is_better: bool, **options: Any
) -> dict[str, Interval]:
    """Like :func:`compare`, for the mean over several seeds of each item's values.

    Args:
        runs: the details of each seed, on the same items.
    """
    averaged: dict[str, dict[str, Any]] = {}
    for score in {name for run in runs for name in run}:
        known = [run.get(score, {}) for run in runs]
        rows = [one.get("items") or [] for one in known]
        if rows[0] and all(len(row) == len(rows[0]) for row in rows):
            items = np.mean(np.asarray(rows, np.float64), axis=0).tolist()
            averaged[score] = {"items": items, "weights": _agreed(known)}
    return compare(averaged, higher_is_better, **options)
