"""``offsite offer --try``: compare recipes on the owner's own data and write no offer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli.output import emit, note
from offsite.cli.shared import Machine, RowOptions
from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.lab.trial import Tried


@dataclass(frozen=True)
class TrialOptions:
    """Whether to compare recipes first, and how long."""

    compare: Annotated[
        bool,
        typer.Option("--try", help="Write no offer: compare recipes on --data and recommend one."),
    ] = False
    try_steps: Annotated[
        int, typer.Option(help="Steps of each training run of --try.", min=1, max=100_000)
    ] = 10

    def run(
        self,
        model: str,
        out: Path,
        data: str | None,
        eval_data: str | None,
        rows: RowOptions,
        machine: Machine,
        adapter: str,
        seed: int,
        json: bool,
    ) -> None:
        """Try the recipes, say what each is worth and what to type next.

        What is computed stays in ``OUT.try``, where the same command finds it again.

        Raises:
            OffsiteError: no data, or data that cannot be divided.
        """
        from offsite.lab import trial
        from offsite.model.checkpoint import Checkpoint

        if data is None:
            raise OffsiteError(
                "--try compares recipes on data of your own; give it with --data, such as a public "
                "text that resembles your customer's."
            )
        work = out.with_name(f"{out.name}.try")
        full = Checkpoint.of(model, rows.load().auto_class)
        plan = trial.make_plan(
            full, data, eval_data, work, task=rows.task, adapter=adapter, steps=self.try_steps,
            max_length=rows.max_length, seed=seed, dtype=machine.dtype, skip_bad=rows.skip_bad,
        )  # fmt: skip
        lab, outcomes = trial.run(plan, work, machine.device)
        left = trial.estimate(lab) if lab.missing() else {}
        if left:
            note(trial.opening(plan, sum(left.values())))
        tried, start = [], time.perf_counter()
        for one in outcomes:
            tried.append(one)
            note(trial.progress(tried, left, time.perf_counter() - start))
        chosen = trial.recommend(tried)
        command = trial.next_command(plan, data, out, chosen) if chosen else None
        metric = lab.setting.task.metric
        result = {
            "recipes": [asdict(one) for one in tried],
            "metric": metric,
            "steps": self.try_steps,
            "limits": trial.limits(lab),
            "recommended": chosen.recipe if chosen else None,
            "command": command,
        }
        lines = [table(tried, metric), trial.limits(lab), trial.advice(tried, chosen)]
        lines += [f"Next: {command}"] if command else []
        emit(result, json, lines)


def table(tried: Sequence[Tried], metric: str) -> Any:
    """The outcomes of a trial for people."""
    from rich import box
    from rich.table import Table

    unit = "nats per token" if metric == "loss" else metric
    shown = Table(title=f"Scores in {unit}", title_justify="left", box=box.SIMPLE)
    for title in ("recipe", "offer", "verbatim", "emulator", "plug-in", "gain", "healed", "margin"):
        shown.add_column(title, justify="left" if title == "recipe" else "right")
    for one in tried:
        scores = (one.emulator, one.plug_in, one.gain, one.healed, one.margin)
        emulator, *rest = ("-" if score is None else f"{score:.3f}" for score in scores)
        shown.add_row(one.recipe, f"{one.size:.0%}", f"{one.verbatim:.0%}", emulator, *rest)
    return shown
