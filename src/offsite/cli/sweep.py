"""The command that draws the frontier of recipes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from offsite.cli import options as o
from offsite.cli.research import show_rows
from offsite.cli.training import training_options
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions


@training_options(leave_out=o.NO_EFFECT_IN_LAB)
def sweep(
    model: Annotated[str, typer.Argument(help="Full model.")],
    data: Annotated[str, typer.Option(help="Private (or stand-in) data to tune on.")],
    eval_data: Annotated[str, typer.Option(help="Data to score on.")],
    calibration: Annotated[str | None, typer.Option(help="The owner's own data.")] = None,
    adapter: o.Adapter = "ends:2,2",
    recipe: Annotated[
        str, typer.Option(help="Presets, separated by commas.")
    ] = "uniform,influence,crash,gradot,int4",
    budgets: Annotated[str, typer.Option(help="Shares of the middle's bytes.")] = "0.6,0.45,0.3",
    target: Annotated[
        str | None,
        typer.Option(help="What to choose for: recovered=0.85,margin=0.25,bytes=0.5."),
    ] = None,
    delta: Annotated[str, typer.Option(help="Method to tune with.")] = "full",
    learned: Annotated[str | None, typer.Option(help="Folder of a LayerReplace pass.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of cells, results and picture.")] = Path(
        "sweep"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0",
    full_lr: o.FullLr = "1e-4,3e-4,1e-3",
    jobs: o.Jobs = 1,
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    skip_bad: o.SkipBad = False,
    dtype: o.Dtype = None,
    device: o.Device = None,
    json: o.Json = False,
    *,
    training: TrainOptions,
) -> None:
    """Run recipes over a grid of budgets and draw the frontier of recovered against margin."""
    from offsite.compress.scaleot.step import resolve_adapter
    from offsite.deltas import method_json
    from offsite.lab import sweep as frontier
    from offsite.lab.plan import Plan
    from offsite.lab.results import run_plans
    from offsite.model.checkpoint import Checkpoint
    from offsite.model.split import parse_adapter
    from offsite.report.bars import check_picture
    from offsite.tasks import load_task

    for source in (data, eval_data, calibration):
        o.check_source(source)
    wish, picture = read_target(target), out / "frontier.png"
    check_picture(picture, frontier.PURPOSE)
    full = Checkpoint.of(model, load_task(task).auto_class)
    rule = resolve_adapter(parse_adapter(adapter), learned, full)
    plan = Plan(
        model=model,
        data=data,
        eval_data=eval_data,
        task=task,
        max_length=max_length,
        skip_bad=skip_bad,
        adapter=str(rule),
        calibration=calibration,
        recipes=frontier.grid(
            recipe.split(","), o.numbers(budgets, "budgets"), full, rule, learned
        ),
        deltas={delta: method_json(delta)},
        seeds=o.whole_seeds(seeds),
        options=training,
        full_lr=o.numbers(full_lr, "learning rates"),
        dtype=dtype or "float32",
    )
    rows, made_on = run_plans([plan], out, device, jobs=jobs, say=o.note)
    points = frontier.points(rows)
    if not points:
        show_rows(rows, out, json, made_on)
        raise OffsiteError(
            "There is no frontier: full fine-tuning gained nothing over zero-shot, so no share of "
            "it can be recovered; tune for more steps or on data nearer to --eval-data."
        )
    first, missing = rows[0], frontier.left_out(points)
    more: dict[str, Any] = {"front": [p.recipe for p in frontier.front(points)]}
    more |= {"picture": str(picture), "points": [point.to_json() for point in points]}
    lines = [f"front: {', '.join(more['front'])}", f"picture: {picture}", *missing]
    for sentence in missing if json else ():
        o.note(sentence)
    unmet = None
    if wish:
        try:
            more["chosen"] = frontier.choose(points, **wish).recipe
            lines.append(f"chosen for {target}: [bold]{more['chosen']}[/]")
        except OffsiteError as error:
            unmet = error  # the results are shown all the same
    show_rows(rows, out, json, made_on, more, lines)
    frontier.draw(points, picture, metric=first["metric"])
    if unmet is not None:
        raise unmet


def read_target(text: str | None) -> dict[str, float] | None:
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
