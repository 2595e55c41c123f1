"""The command that plays both roles, and the table of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.output import command, emit, note
from offsite.cli.shared import GridOptions, Machine, RowOptions
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions

Recipes = Annotated[
    list[str] | None, typer.Option(help="PRESET@BUDGET such as crash@0.45; repeatable.")
]
Keep = Annotated[
    int | None, typer.Option(help="Add a recipe that keeps this many middle blocks, evenly spaced.")
]
DistillSteps = Annotated[
    int | None, typer.Option(help="Add --keep with this many steps of distillation.")
]
Deltas = Annotated[
    list[str] | None,
    typer.Option(help="Method such as lora:rank=8 or lora+bitfit, or all; repeatable."),
]
Cached = Annotated[
    bool, typer.Option("--cached", help="Compute nothing; show the results in --out.")
]
Data = Annotated[str | None, typer.Option(help="Private data to tune on.")]
EvalData = Annotated[str | None, typer.Option(help="Private data to score on.")]


@grouped(leave_out=o.NO_EFFECT_IN_LAB)
def lab(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Full model, or an experiment file (.toml, .json).")],
    data: Data = None,
    eval_data: EvalData = None,
    recipe: Recipes = None,
    keep: Keep = None,
    distill_steps: DistillSteps = None,
    delta: Deltas = None,
    prompt_decoder: o.Decoder = None,
    out: Annotated[Path, typer.Option(help="Folder of cells and results.")] = Path("lab"),
    baseline: Annotated[bool, typer.Option(help="Run full fine-tuning as the baseline.")] = True,
    healed: Annotated[
        bool, typer.Option(help="Tune every weight of each offer, for the margin.")
    ] = True,
    cached: Cached = False,
    json: o.Json = False,
    *,
    grid: GridOptions,
    rows: RowOptions,
    machine: Machine,
    training: TrainOptions,
) -> None:
    """Play both roles and put every recipe, delta and seed in one table with the baselines."""
    from offsite.deltas import method_json
    from offsite.lab.experiment import make_recipes, named_recipes, read_experiment
    from offsite.lab.results import run_plans
    from offsite.tasks.data import find_source, need_source

    if cached and grid.jobs > 1:
        raise OffsiteError(
            "--cached computes nothing, so --jobs has no effect; leave one of the two out."
        )
    if model.endswith((".toml", ".json")):
        o.leave_to_file(context, model, ("model", "out", "cached", "jobs", "device", "json"))
        plans = read_experiment(model)
    else:
        kind = rows.load()
        test = need_source(kind, eval_data, "test", "--eval-data")
        side = {"prompt_decoder": str(prompt_decoder)} if prompt_decoder else {}
        names = method_names(delta or ["full"], model, rows.task, grid.adapter, side)
        recipes = named_recipes(recipe or (), keep, distill_steps)
        plan = grid.plan(
            model, find_source(kind, data, "train"), test, rows, machine, training,
            recipes=make_recipes(recipes, model, rows.task, grid.adapter),
            deltas={name: method_json(name) for name in names},
            baseline=baseline, healed=healed, side=side,
        )  # fmt: skip
        plans = [plan]
    done, made_on = run_plans(plans, out, machine.device, cached, jobs=grid.jobs, say=note)
    show_rows(done, out, json, made_on)


def method_names(
    given: Sequence[str], model: str, task: str, adapter: str, side: Mapping[str, str]
) -> list[str]:
    """The methods to run; ``all`` means every method that can tune this model."""
    if "all" not in given:
        return list(given)
    fitting = all_that_fit(model, task, adapter, side)
    return [*fitting, *(name for name in given if name not in ("all", *fitting))]


def all_that_fit(model: str, task: str, adapter: str, side: Mapping[str, str]) -> list[str]:
    """Every method that can tune this model; the others are named with the reason."""
    from offsite.deltas.fitting import misfits
    from offsite.tasks import load_task

    reasons = misfits(model, load_task(task).auto_class, adapter, side)
    for name, reason in reasons.items():
        if reason is not None:
            note(f"skip  {name}: {reason}")
    return [name for name, reason in reasons.items() if reason is None]


def show_rows(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    as_json: bool,
    made_on: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
    lines: Sequence[Any] = (),
) -> None:
    """Write the results in every form under ``out`` and show the table."""
    from offsite.lab.results import best_of, write_results
    from offsite.report.summary import diverged
    from offsite.report.terminal import compared, costs, terminal

    result = write_results(rows, out, command(), made_on, more)
    slim = [{k: v for k, v in row.items() if k != "details"} for row in rows]
    shown = {**result, "rows": slim, **({} if len(rows) > 1 else best_of(rows[0]))}
    files = f"results: {out}/results.json (.md, .tex, .csv), intervals.csv"
    unknown = diverged(rows)
    for sentence in unknown if as_json else ():
        note(sentence)
    emit(shown, as_json, [terminal(rows), compared(rows), costs(rows), *unknown, files, *lines])
