"""The command that measures the importance of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.output import emit
from offsite.cli.shared import Machine, RowOptions
from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.compress.step import Context

Learn = Annotated[
    Path | None,
    typer.Option(help="Also learn ScaleOT's scores and harmonizers, and save them in this folder."),
]
Steps = Annotated[int | None, typer.Option(help="Steps of --learn; 1000 by default.")]


@grouped()
def importance(
    model: o.Model,
    data: Annotated[str, typer.Option(help="Your own data.")],
    learn: Learn = None,
    learn_steps: Steps = None,
    learned: o.Learned = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write (.png or .svg).")] = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    json: o.Json = False,
    *,
    rows: RowOptions,
    machine: Machine,
) -> None:
    """Measure the importance of every block in several ways."""
    from offsite.compress.importance import importance as measure
    from offsite.compress.step import Context
    from offsite.files import check_free
    from offsite.model.blocks import get_blocks
    from offsite.model.checkpoint import load_model, load_processor
    from offsite.model.configuration import load_config
    from offsite.model.split import Split
    from offsite.report.bars import PURPOSE, check_picture, draw_importance, importance_table
    from offsite.tasks.data import prepare_all, read_data, rows_of
    from offsite.training.resume import work_folder

    for path in filter(None, (learn, out)):
        check_free(path)
    if out is not None:
        check_picture(out, PURPOSE)
    check_learning(learn, learned, learn_steps, resume)
    kind = rows.load()
    own = read_data(kind, data, train=True)
    processor = load_processor(model, kind.name)
    prepare_all((own,), processor, load_config(model))
    full = load_model(model, kind.auto_class, dtype=machine.precision("float32"))
    full = full.to(machine.pick()).requires_grad_(False)
    examples = rows_of(kind, own, processor, full, train=True)
    work = work_folder(learn, resume) if learn else None
    split = Split((0,), len(get_blocks(full)))
    context = Context(full, split, kind, examples, seed, work, resume)
    table = measure(context, learned=learned_scores(context, learn, learn_steps, learned))
    if out is not None:
        draw_importance(table, out)
    result = {"importance": table, "learned": str(learn or learned or "")}
    emit(result, json, [importance_table(table)])


def check_learning(
    learn: Path | None, learned: str | None, steps: int | None, resume: bool
) -> None:
    """Refuse options about learning that contradict each other or have no effect.

    Raises:
        OffsiteError: saying which.
    """
    if learn is not None and learned is not None:
        raise OffsiteError("--learn learns scores and --learned reads them; give one of the two.")
    if learn is None and (resume or steps is not None):
        raise OffsiteError(
            "--resume and --learn-steps have no effect without --learn; add --learn, or leave "
            "them out."
        )


def learned_scores(
    context: Context, learn: Path | None, steps: int | None, learned: str | None
) -> dict[str, tuple[float, ...]]:
    """Scores that a LayerReplace pass learns now, to be saved in ``learn``, or has learned."""
    from offsite.compress.scaleot.learned import Learned
    from offsite.compress.scaleot.learning import learn as learn_scores
    from offsite.compress.scaleot.training import Training
    from offsite.training.resume import finish_work

    if learn is not None:
        found = learn_scores(context, Training() if steps is None else Training(steps=steps))
        found.save(learn)
        finish_work(context.work)
        return {"learned": found.scores}
    if learned is not None:
        return {"learned": Learned.load(learned, context.model).scores}
    return {}
