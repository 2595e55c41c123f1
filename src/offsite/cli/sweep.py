"""The command that draws the frontier of recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.lab import show_rows
from offsite.cli.output import note
from offsite.cli.shared import GridOptions, Machine, RowOptions
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions

if TYPE_CHECKING:
    from offsite.lab.sweep import Point

Data = Annotated[str, typer.Option(help="Data to tune on, in the place of the private data.")]
Presets = Annotated[str, typer.Option(help="Presets, separated by commas.")]
Budgets = Annotated[str, typer.Option(help="Shares of the middle's bytes.")]
Target = Annotated[
    str | None,
    typer.Option(
        help="Recommend a recipe that reaches goals, such as recovered=0.85,margin=0.25,bytes=0.5."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of cells, results and picture.")]


@grouped(leave_out=o.NO_EFFECT_IN_LAB)
def sweep(
    model: Annotated[str, typer.Argument(help="Full model.")],
    data: Data,
    eval_data: Annotated[str, typer.Option(help="Data to score on.")],
    recipe: Presets = "uniform,influence,crash,gradot,int4",
    budgets: Budgets = "0.6,0.45,0.3",
    target: Target = None,
    delta: Annotated[str, typer.Option(help="Method to tune with.")] = "full",
    learned: o.Learned = None,
    out: Out = Path("sweep"),
    json: o.Json = False,
    *,
    grid: GridOptions,
    rows: RowOptions,
    machine: Machine,
    training: TrainOptions,
) -> None:
    """Run recipes at several budgets and draw recovered against margin."""
    from offsite.compress.scaleot.step import resolve_adapter
    from offsite.deltas import method_json
    from offsite.lab import sweep as frontier
    from offsite.lab.results import run_plans
    from offsite.model.checkpoint import Checkpoint
    from offsite.model.split import parse_adapter
    from offsite.report.bars import check_picture

    for source in (data, eval_data, grid.calibration):
        o.check_source(source)
    wish, picture = frontier.parse_target(target), out / "frontier.png"
    check_picture(picture, frontier.PURPOSE)
    full = Checkpoint.of(model, rows.load().auto_class)
    rule = resolve_adapter(parse_adapter(grid.adapter), learned, full)
    shares = o.numbers(budgets, "budgets")
    plan = grid.plan(
        model, data, eval_data, rows, machine, training,
        recipes=frontier.grid(recipe.split(","), shares, full, rule, learned),
        deltas={delta: method_json(delta)},
    )  # fmt: skip
    done, made_on = run_plans([plan], out, machine.device, jobs=grid.jobs, say=note)
    points = frontier.points(done)
    if not points:
        show_rows(done, out, json, made_on)
        raise OffsiteError(frontier.NO_POINT)
    more, lines, unmet = describe(points, picture, wish, target)
    for sentence in frontier.left_out(points) if json else ():
        note(sentence)
    show_rows(done, out, json, made_on, more, lines)
    frontier.draw(points, picture, metric=done[0]["metric"])
    if unmet is not None:  # the results are shown nevertheless
        raise unmet


def describe(
    points: Sequence[Point],
    picture: Path,
    wish: Mapping[str, float] | None,
    target: str | None,
) -> tuple[dict[str, Any], list[str], OffsiteError | None]:
    """The frontier for ``--json`` and in lines, and the refusal of a wish that nothing meets."""
    from offsite.lab.sweep import choose, front, left_out

    more: dict[str, Any] = {"front": [point.recipe for point in front(points)]}
    more |= {"picture": str(picture), "points": [point.to_json() for point in points]}
    lines = [f"front: {', '.join(more['front'])}", f"picture: {picture}", *left_out(points)]
    if wish is None:
        return more, lines, None
    try:
        chosen = choose(points, **wish).recipe
    except OffsiteError as error:
        return more, lines, error
    return {**more, "chosen": chosen}, [*lines, f"chosen for {target}: {chosen}"], None
