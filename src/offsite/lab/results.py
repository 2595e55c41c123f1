"""Run plans one after another, and write their rows in every form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offsite.compress.forecast import span
from offsite.errors import OffsiteError
from offsite.files import write_file
from offsite.lab.checking import check_plans
from offsite.lab.duration import seconds
from offsite.lab.environment import merged
from offsite.lab.lab import Lab
from offsite.lab.parallel import compute_all
from offsite.lab.plan import Plan
from offsite.report import tables
from offsite.report.summary import summary
from offsite.scores.scores import DERIVED
from offsite.training.identity import plain


def run_plans(
    plans: Sequence[Plan],
    out: Path,
    device: str | None,
    cached: bool = False,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run plans with their cells under ``out``.

    Args:
        cached: compute nothing.
        jobs: how many cells to compute at once, each in a process of its own.
        say: receives messages: how long a plan takes, and every row that is done.

    Returns:
        The rows, and the environments that their cells were computed in, as one.
    """
    rows, environments = [], []
    checked = check_plans(plans, read=not cached)  # the last is not to fail hours later
    if jobs > 1 and not cached:
        compute_all(plans, checked, out, device, jobs)
    for plan, data in zip(plans, checked, strict=True):
        lab = Lab(plan, out, device, cached=cached, data=data)
        if missing := {} if cached else lab.missing():
            expected = sum(seconds(lab, missing).values())
            say(f"{len(missing)} cells to compute, about {span(expected)} on this machine")
        for row in lab.run():
            rows.append(row.to_json())
            plug = row.scores.plug_in
            result = "" if plug is None else f": plug-in {plug:.4f}"
            say(f"done  {row.task}  {row.recipe}  {row.delta}  seed {row.seed}{result}")
        environments += lab.environments
    return rows, merged(environments)


def write_results(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    command: str,
    made_on: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write rows in every form under ``out``; returns what ``results.json`` holds.

    Args:
        command: what was typed to make them.
        made_on: the environments that their cells were computed in.
        more: further entries of ``results.json``.

    Raises:
        OffsiteError: there are no rows.
    """
    if not rows:
        raise OffsiteError(
            f"'{out}' has no result to show; name a recipe and a delta, or leave out --cached."
        )
    result = {
        "command": command,
        "environment": made_on,
        "rows": list(rows),
        "settings": summary(rows),
        **(more or {}),
    }
    write_file(out / "results.json", json.dumps(result, default=plain) + "\n")
    write_file(out / "results.md", tables.markdown(rows))
    write_file(out / "results.tex", tables.latex(rows))
    write_file(out / "results.csv", tables.table_csv(rows))
    write_file(out / "intervals.csv", tables.intervals_csv(rows))
    return result


def best_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a single row, where every command puts them."""
    keys = ("scores", "metric", "higher_is_better", *DERIVED, "max_length")
    return {key: row[key] for key in keys if key in row}
