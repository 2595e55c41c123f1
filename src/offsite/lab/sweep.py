"""Many recipes at many budgets: the best of them, and one picture.

Pure functions over rows as the lab writes them: ``recipe`` (a preset), ``budget``, ``seed``,
``scores``, ``recovered``, ``gap``, ``margin``, ``verbatim``, ``bytes_offer``, ``bytes_model`` and
the like.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offsite.compress.recipe import Recipe
from offsite.errors import OffsiteError
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import AdapterRule
from offsite.report.bars import check_picture

PURPOSE = "The picture of the frontier"
NO_POINT = (
    "There is no frontier: full fine-tuning gained nothing over zero-shot, so no share of it can "
    "be recovered; tune for more steps or on data nearer to --eval-data."
)


def grid(
    presets: Sequence[str],
    budgets: Sequence[float],
    model: Checkpoint,
    adapter: AdapterRule,
    learned: str | None = None,
) -> dict[str, Recipe]:
    """Every preset at every budget, by names such as ``"crash@0.45"``; equal recipes appear once.

    Raises:
        OffsiteError: an unknown preset, or a budget out of range.
    """
    cells: dict[str, Recipe] = {}
    for preset in presets:
        for budget in budgets:
            recipe = Recipe.parse(preset, model, adapter, budget=budget, learned=learned)
            if recipe not in cells.values():
                cells[preset if "@" in preset else f"{preset}@{budget:g}"] = recipe
    return cells


@dataclass(frozen=True)
class Point:
    """One recipe on the frontier, the mean over its seeds.

    Attributes:
        plug_in, emulator_tuned, healed: in the task's metric.
        recovered, gap, margin: see :class:`offsite.scores.scores.Scores`; the last two in the
            metric's unit.
        verbatim: share of all parameters that leave verbatim, 0..1.
        size: bytes of the offer over bytes of the model.
        seconds: to make the offer.
        seeds: how many runs this is the mean of.
        left_out: how many more there were whose recovered share or margin is unknown.
    """

    recipe: str
    budget: float | None
    plug_in: float
    emulator_tuned: float
    healed: float
    recovered: float
    gap: float
    margin: float
    verbatim: float
    size: float
    seconds: float
    seeds: int
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """The point as a flat JSON object."""
        return asdict(self)


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Rows grouped by recipe and budget and averaged, best recovered first.

    Rows without a tuned emulator, a margin or a recovered share are left out, and counted.
    """
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    every: Counter[tuple[str, float | None]] = Counter()
    for row in rows:
        every[row["recipe"], row.get("budget")] += 1
        scores = row["scores"]
        known = row.get("recovered") is not None and row.get("margin") is not None
        if known and {"plug_in", "emulator_tuned", "healed"} <= scores.keys():
            groups.setdefault((row["recipe"], row.get("budget")), []).append(row)
    found = []
    for (recipe, budget), members in groups.items():

        def mean(key: str, members: Sequence[Mapping[str, Any]] = members) -> float:
            return sum(float(m["scores"].get(key, m.get(key, 0.0))) for m in members) / len(members)

        found.append(
            Point(
                recipe,
                budget,
                mean("plug_in"),
                mean("emulator_tuned"),
                mean("healed"),
                mean("recovered"),
                mean("gap"),
                mean("margin"),
                mean("verbatim"),
                mean("bytes_offer") / mean("bytes_model"),
                mean("seconds_offer"),
                len(members),
                every[recipe, budget] - len(members),
            )
        )
    return sorted(found, key=lambda point: -point.recovered)


def left_out(found: Sequence[Point]) -> list[str]:
    """A sentence for every point that is the mean of some of its seeds only."""
    return [
        f"{point.recipe}: the mean of {point.seeds} of {point.seeds + point.left_out} runs; in the "
        "others full fine-tuning gained nothing, or a run diverged."
        for point in found
        if point.left_out
    ]


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other beats in recovered and margin at once, best recovered first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (-p.recovered, -p.margin)):
        if not best or point.margin > best[-1].margin:
            best.append(point)
    return best


def parse_target(text: str | None) -> dict[str, float] | None:
    """An owner's wish: ``recovered=0.85,margin=0.25,bytes=0.5``; all but the first may be left out.

    Raises:
        OffsiteError: another form.
    """
    if text is None:
        return None
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    try:
        wish = {key.strip(): float(value) for key, value in pairs}
    except ValueError:
        wish = {}
    known = {"recovered"} <= set(wish) <= {"recovered", "margin", "bytes"}
    if not known or len(wish) < len(pairs) or not all(map(math.isfinite, wish.values())):
        raise OffsiteError(
            f"'{text}' is not a target; write recovered=SHARE,margin=NUMBER,bytes=SHARE, such as "
            "recovered=0.85,margin=0.25,bytes=0.5 (margin in the metric's own unit)."
        )
    return wish


def choose(
    found: Sequence[Point], recovered: float, margin: float | None = None, bytes: float = 1.0
) -> Point:
    """An owner's wish: the largest margin among the points that meet it.

    Args:
        found: the candidates.
        recovered: at least this share of full fine-tuning's gain, such as 0.85.
        margin: at least this margin, in the metric's unit; None asks for none.
        bytes: at most this share of the model's bytes, such as 0.5.

    Raises:
        OffsiteError: nothing meets it; the message names what comes nearest.
    """
    small = [point for point in found if point.size <= bytes]
    if not small:
        least = min((point.size for point in found), default=1.0)
        raise OffsiteError(
            f"No recipe of the sweep makes an offer of at most {bytes:.0%} of the model; the "
            f"smallest takes {least:.0%}, so allow more bytes or add smaller budgets."
        )
    good = [point for point in small if point.recovered >= recovered]
    if not good:
        nearest = max(small, key=lambda point: point.recovered)
        raise OffsiteError(
            f"No recipe recovers {recovered:.0%} within {bytes:.0%} of the model's bytes; the "
            f"nearest is {nearest.recipe} with {nearest.recovered:.1%}, so ask for less or allow "
            "more bytes."
        )
    chosen = max(good, key=lambda point: (point.margin, point.recovered))
    if margin is not None and chosen.margin < margin:
        raise OffsiteError(
            f"No recipe that recovers {recovered:.0%} has a margin of {margin:g}; the nearest is "
            f"{chosen.recipe} with {chosen.margin:.3f}, so ask for less of one of the two."
        )
    return chosen


def draw(found: Sequence[Point], path: str | Path, *, metric: str) -> None:
    """Recovered share against margin; marker area is the size of the offer.

    Up is better for both sides, right is better for the owner. Left of the dashed line the tuner
    does not need the owner. The line through the ringed points is the front; its points are named.

    Args:
        found: what :func:`points` gave; at least one.
        path: where to write, by its suffix ``.png``, ``.svg`` or ``.pdf``.
        metric: the unit of the margin.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OffsiteError: no point to draw.
    """
    check_picture(path, PURPOSE)
    from matplotlib.figure import Figure

    if not found:
        raise OffsiteError("There is no finished run to draw; run the sweep first.")
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for recipe in dict.fromkeys(point.recipe.split("@")[0] for point in found):
        group = [point for point in found if point.recipe.split("@")[0] == recipe]
        axes.scatter(
            [p.margin for p in group],
            [100 * p.recovered for p in group],
            s=[30 + 400 * p.size for p in group],
            alpha=0.65,
            label=recipe,
        )
    best = front(found)
    x, y = [p.margin for p in best], [100 * p.recovered for p in best]
    axes.plot(x, y, color="black", linewidth=1, marker="o", markerfacecolor="none", markersize=4)
    for point in best:
        at = (point.margin, 100 * point.recovered)
        axes.annotate(
            point.recipe, at, (-8, 10), textcoords="offset points", fontsize=7, ha="right"
        )
    axes.axvline(0, color="grey", linestyle="dashed", linewidth=1)
    unit = "nats" if metric == "loss" else metric
    axes.set_xlabel(f"margin: plug-in over healed emulator ({unit})")
    axes.set_ylabel("recovered (% of full fine-tuning's gain)")
    axes.legend(frameon=False, fontsize=8, markerscale=0.6)
    figure.savefig(path, dpi=150)
