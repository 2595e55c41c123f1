"""Spread and paired bootstrap against slow, obvious references."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from offsite.errors import OffsiteError
from offsite.scores.statistics import compare, over_seeds, paired_bootstrap, spread


def slow_interval(gaps: list[float], resamples: int, level: float) -> tuple[float, float]:
    """The percentile interval, one resample after another."""
    source = random.Random(5)
    means = sorted(statistics.fmean(source.choices(gaps, k=len(gaps))) for _ in range(resamples))
    cut = (1 - level) / 2
    return means[round(cut * (resamples - 1))], means[round((1 - cut) * (resamples - 1))]


def test_bootstrap_agrees_with_the_slow_reference() -> None:
    source = random.Random(1)
    first = [float(source.random() < 0.6) for _ in range(200)]
    second = [a if source.random() < 0.7 else float(source.random() < 0.5) for a in first]
    found = paired_bootstrap(first, second, resamples=20_000)
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    low, high = slow_interval(gaps, 20_000, 0.95)
    assert found.mean == pytest.approx(statistics.fmean(gaps))
    assert found.low == pytest.approx(low, abs=0.006) and found.high == pytest.approx(
        high, abs=0.006
    )
    assert found == paired_bootstrap(first, second, resamples=20_000)
    turned = paired_bootstrap(first, second, higher_is_better=False, resamples=20_000)
    assert (turned.mean, turned.low, turned.high) == pytest.approx(
        (-found.mean, -found.high, -found.low), abs=0.006
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    source = random.Random(3)
    covered = 0
    for _ in range(200):
        first = [source.gauss(0.3, 1) for _ in range(60)]
        found = paired_bootstrap(first, [0.0] * 60, resamples=500)
        covered += found.low <= 0.3 <= found.high
    assert 176 <= covered <= 198


def test_items_that_count_more_weigh_more() -> None:
    source = random.Random(2)
    weights = [1.0 + 9 * (i % 2) for i in range(60)]
    first = [source.gauss(1.0 if w > 1 else -1.0, 0.1) for w in weights]
    pairs = list(zip(first, weights, strict=True))
    draws = [source.choices(pairs, k=60) for _ in range(4000)]
    means = sorted(sum(v * w for v, w in draw) / sum(w for _, w in draw) for draw in draws)
    found = paired_bootstrap(first, [0.0] * 60, weights=weights)
    assert found.mean == pytest.approx(sum(v * w for v, w in pairs) / sum(weights))
    assert (found.low, found.high) == pytest.approx((means[100], means[3899]), abs=0.03)
    assert found.low < found.mean < found.high
    plain = paired_bootstrap(first, [0.0] * 60)
    assert plain.high < found.low and plain == paired_bootstrap(
        first, [0.0] * 60, weights=[7.0] * 60
    )
    scores = {"plug_in": first, "emulator_tuned": [0.0] * 60}
    run = {name: {"items": items, "weights": weights} for name, items in scores.items()}
    name = "plug_in - emulator_tuned"
    assert compare(run, True)[name] == over_seeds([run, run], True)[name] == found
    run["plug_in"] = {"items": first}  # as written before there were weights
    assert compare(run, True)[name] == over_seeds([run, run], True)[name] == plain
    with pytest.raises(OffsiteError, match="2 items need as many weights"):
        paired_bootstrap([1.0, 2.0], [0.0, 0.0], weights=[1.0, 0.0])


def test_spread_is_the_sample_deviation() -> None:
    values = [0.1, 0.4, 0.35]
    assert spread(values).std == pytest.approx(statistics.stdev(values))
    assert spread([2.0]).std is None
    with pytest.raises(OffsiteError, match="no value"):
        spread([])


def test_a_constant_difference_has_no_width() -> None:
    found = paired_bootstrap([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (found.low, found.mean, found.high) == (1.0, 1.0, 1.0) and found.clear


def test_comparisons_of_runs_and_of_seeds() -> None:
    one: dict[str, Any] = {
        "plug_in": {"items": [1.0, 0.0, 1.0]},
        "emulator_tuned": {"items": [0.0, 0.0, 1.0]},
        "full_tuned": {"items": None},
    }
    assert set(compare(one, True)) == {"plug_in - emulator_tuned"}
    two: dict[str, Any] = {
        "plug_in": {"items": [0.0, 0.0, 1.0]},
        "emulator_tuned": {"items": [0.0, 0.0, 0.0]},
        "full_tuned": {"items": [1.0, 1.0, 1.0]},
    }
    both = over_seeds([one, two], True)
    assert both["plug_in - emulator_tuned"].mean == pytest.approx(1 / 3)
    assert "plug_in - full_tuned" not in both


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([], [], "0 and 0 items"), ([1.0], [1.0, 2.0], "1 and 2"), ([float("nan")], [1.0], "finite")],
)
def test_what_cannot_be_paired_is_refused(
    first: list[float], second: list[float], message: str
) -> None:
    with pytest.raises(OffsiteError, match=message):
        paired_bootstrap(first, second)
