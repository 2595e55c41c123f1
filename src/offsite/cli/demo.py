"""The command that plays both roles on a built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.output import emit, note


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("demo"),
    steps: Annotated[int, typer.Option(help="Tuning steps.")] = 60,
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Play both roles on a small built-in model and text, in a few minutes."""
    import time

    from offsite.demo import make_plan
    from offsite.lab.environment import merged
    from offsite.lab.lab import Lab
    from offsite.lab.results import best_of, write_results
    from offsite.report import write_report
    from offsite.report.terminal import score_bars, terminal

    start = time.perf_counter()
    plan = make_plan(out, steps, seed)
    note("offer, tune, plug and score: both roles on this machine, meeting only through folders")
    lab = Lab(plan, out / "results", exchange=out / "exchange")
    rows = []
    for row in lab.run():
        rows.append(row.to_json())
        note(f"done  {row.recipe}  {row.delta}")
    command, made_on = f"offsite demo --steps {steps} --seed {seed}", merged(lab.environments)
    result = write_results(rows, out / "results", command, made_on)
    page = write_report([out / "results"], out / "report.html", title="offsite demo")
    slim = [{k: v for k, v in row.items() if k != "details"} for row in rows]
    seconds = time.perf_counter() - start
    lines = [
        terminal(rows, "perplexity (lower is better); recovered and gap in nats"),
        *(score_bars(row) for row in rows),
        f"{out}/exchange holds the offer, the owner's record and the deltas; the page is {page}",
        f"{seconds:.0f} seconds",
    ]
    shown = {**result, "rows": slim, "report": str(page), "seconds": seconds}
    emit({**shown, **best_of(slim[0])}, json, lines)
