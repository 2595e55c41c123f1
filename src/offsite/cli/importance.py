"""The command that measures the importance of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.owner import Learned, Model
from offsite.errors import OffsiteError


def importance(
    model: Model,
    data: Annotated[str, typer.Option(help="Your own data.")],
    learn: Annotated[
        Path | None, typer.Option(help="Also learn ScaleOT's scores and harmonizers, saved here.")
    ] = None,
    learn_steps: Annotated[
        int | None, typer.Option(help="Steps of that learning; default 1000.")
    ] = None,
    learned: Learned = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write (.png or .svg).")] = None,
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    skip_bad: o.SkipBad = False,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    dtype: o.Dtype = None,
    device: o.Device = None,
    json: o.Json = False,
) -> None:
    """Measure the importance of every block, by all signals side by side."""
    from offsite.compress.importance import importance as measure
    from offsite.compress.scaleot.learned import Learned as Result
    from offsite.compress.scaleot.learning import Training
    from offsite.compress.scaleot.learning import learn as learn_scores
    from offsite.compress.step import Context
    from offsite.files import check_free
    from offsite.model.blocks import get_blocks
    from offsite.model.checkpoint import load_model, parse_dtype, pick_device
    from offsite.model.configuration import load_config
    from offsite.model.processor import load_processor
    from offsite.model.split import Split
    from offsite.report.bars import PURPOSE, check_picture, draw_importance, importance_table
    from offsite.tasks import load_task
    from offsite.tasks.data import prepare_all, read_data, rows_of
    from offsite.training.resume import finish_work, work_folder

    for path in filter(None, (learn, out)):
        check_free(path)
    if out is not None:
        check_picture(out, PURPOSE)
    if learn is not None and learned is not None:
        raise OffsiteError("Give --learn, to learn scores, or --learned, to read some; not both.")
    if learn is None and (resume or learn_steps is not None):
        raise OffsiteError("--resume and --learn-steps belong to --learn; give --learn as well.")
    kind = load_task(task, max_length=max_length, skip_bad=skip_bad)
    own = read_data(kind, data, train=True)
    processor = load_processor(model, kind.name)
    prepare_all((own,), processor, load_config(model))
    full = load_model(model, kind.auto_class, dtype=parse_dtype(dtype or "float32"))
    full = full.to(pick_device(device)).requires_grad_(False)
    rows = rows_of(kind, own, processor, full, train=True)
    training = Training() if learn_steps is None else Training(steps=learn_steps)
    work = work_folder(learn, resume) if learn else None
    context = Context(full, Split((0,), len(get_blocks(full))), kind, rows, seed, work, resume)
    extra = {}
    if learn is not None:
        found = learn_scores(context, training)
        found.save(learn)
        finish_work(work)
        extra["learned"] = found.scores
    elif learned is not None:
        extra["learned"] = Result.load(learned, full).scores
    table = measure(context, learned=extra)
    if out is not None:
        draw_importance(table, out)
    o.emit(
        {"importance": table, "learned": str(learn or learned or "")},
        json,
        [importance_table(table)],
    )
