"""Figures of every setting of a run: means, spread over seeds, intervals over items.

Two uncertainties are given and never mixed. The *deviation* is that of whole runs with
other seeds. The *interval* is a paired bootstrap: each item's values are first averaged over the
seeds, then the items (questions, windows of text) are drawn again with replacement, each with both
scores. It says how much the mean difference depends on which items the set happens to hold. Seeds
are not resampled, because two or three of them are not a sample of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from offsite.report.runs import Setting, group
from offsite.scores.scores import DERIVED, KEYS, TITLES
from offsite.scores.statistics import COMPARISONS, Interval, Spread, spread

ABOUT = ("eval_data", "eval_name", "max_length", "setup")
FIGURES = (*DERIVED, "bytes_offer", "bytes_delta", "seconds_offer")


@dataclass(frozen=True)
class Difference:
    """One comparison of a setting, signed so that larger is better for the plug-in.

    Attributes:
        over_seeds: mean and deviation of the difference over the seeds that have both scores.
        interval: over items; None where no items were kept.
    """

    over_seeds: Spread
    interval: Interval | None


def differences(setting: Setting) -> dict[str, Difference]:
    """Plug-in against each other score of :data:`COMPARISONS`, where both are known."""
    intervals, sign = setting.intervals(), 1 if setting.higher else -1
    found = {}
    for name, (one, other) in COMPARISONS.items():
        pairs = [(row["scores"].get(one), row["scores"].get(other)) for row in setting.rows]
        values = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        if values:
            found[name] = Difference(spread(values), intervals.get(name))
    return found


def summary(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One JSON object per setting: means and deviations over its seeds."""
    return [summarise(setting) for setting in group(rows)]


def summarise(setting: Setting) -> dict[str, Any]:
    """The numbers of one setting, in the metric's own unit."""
    figures = {key: setting.spread(key) for key in FIGURES}
    scores = {key: setting.spread(key) for key in KEYS}
    return {
        "model": setting.model,
        "task": setting.task,
        "recipe": setting.recipe,
        "delta": setting.delta,
        **{k: setting.rows[0][k] for k in ABOUT if k in setting.rows[0]},
        "metric": setting.metric,
        "higher_is_better": setting.higher,
        "seeds": [row.get("seed") for row in setting.rows],
        "scores": {key: asdict(found) for key, found in scores.items() if found is not None},
        **{key: asdict(found) for key, found in figures.items() if found is not None},
        "differences": {name: _json(found) for name, found in differences(setting).items()},
    }


def _json(difference: Difference) -> dict[str, Any]:
    interval = difference.interval
    return {
        **asdict(difference.over_seeds),
        **({"interval": asdict(interval)} if interval is not None else {}),
    }


def diverged(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each score that some runs have no finite number for."""
    counts = {key: sum(key in row.get("diverged", ()) for row in rows) for key in KEYS}
    return [
        f"{TITLES[key]}: unknown in {count} of {len(rows)} runs, which diverged to numbers that "
        "are not finite; what is shown is of the others, so tune with a lower learning rate."
        for key, count in counts.items()
        if count
    ]


def signed(value: float, metric: str) -> str:
    """A difference in nats, or in points where the metric is a share."""
    text = f"{value:+.3f}" if metric == "loss" else f"{100 * value:+.1f}"
    return text if text.strip("+-0.") else text[1:]  # zero has no sign


def difference_text(difference: Difference | None, metric: str, *, deviation: bool = True) -> str:
    """``+0.079 ± 0.006 [+0.072, +0.086]``: mean, deviation over seeds, interval over items."""
    if difference is None:
        return "-"
    text = signed(difference.over_seeds.mean, metric)
    if deviation and difference.over_seeds.std is not None:
        text += f" ± {signed(difference.over_seeds.std, metric).removeprefix('+')}"
    interval = difference.interval
    if interval is not None:
        text += f" [{signed(interval.low, metric)}, {signed(interval.high, metric)}]"
    return text
