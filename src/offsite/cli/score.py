"""The command that scores models and merges scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.output import emit, note
from offsite.cli.shared import Machine, RowOptions
from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.tasks.data import TaskData
    from offsite.tasks.task import Task

Paths = Annotated[list[str], typer.Argument(help="Model, offer/ or tuned/; one or several.")]
TestData = Annotated[
    str | None, typer.Option(help="Data to score on; by default the data that the task file names.")
]
Role = Annotated[str | None, typer.Option("--as", help="Name of the score, such as full_tuned.")]
Base = Annotated[str | None, typer.Option(help="Full model to apply an adapter to.")]
Merge = Annotated[
    list[Path] | None, typer.Option(help="A file of scores that --json wrote; repeatable.")
]
Harness = Annotated[bool, typer.Option("--harness", help="Score through EleutherAI lm-eval.")]
HarnessTask = Annotated[
    str | None, typer.Option(help="A task of lm-eval's own, by name; it fetches the data.")
]


@grouped()
def score(
    context: typer.Context,
    paths: Paths,
    data: TestData = None,
    role: Role = None,
    base: Base = None,
    merge: Merge = None,
    harness: Harness = False,
    harness_task: HarnessTask = None,
    batch_size: o.BatchSize = 16,
    details: o.Details = False,
    json: o.Json = False,
    *,
    rows: RowOptions,
    machine: Machine,
) -> None:
    """Score a model, an offer or a tuned model, and merge the scores of both parties."""
    from dataclasses import asdict
    from functools import reduce

    from offsite.cli.results import score_lines
    from offsite.lab.environment import environment
    from offsite.scores.others import Others
    from offsite.scores.scores import Scores, check_role
    from offsite.scores.scoring import Scoring
    from offsite.scores.settings import private_settings, shareable

    check_role(role, len(paths))
    kind = rows.load()
    test = read_test(kind, data, harness_task)
    # the harness reads as much at once as the model can, unless told otherwise
    length = rows.max_length if o.typed(context, "max_length") else None
    through = harness_task or (kind.name if harness else None)
    place, dtype = machine.pick(), machine.precision("float32")
    how = Scoring(kind, test, place, through, base, batch_size, length, dtype)
    facts = how.facts()
    if details and test is not None:
        facts |= private_settings(test)
    others = Others.read(merge or (), facts)
    scored, partial = {}, []
    for path in paths:
        key, result = how.score(path, role)
        scored[key] = (path, result)
        partial.append(Scores(result.metric, result.higher_is_better, **{key: result.value}))
    if details:
        facts["count"] = result.count
    others.check(facts)
    total = others.merge(reduce(Scores.merge, partial))
    kept = others.details({key: asdict(result) for key, (_, result) in scored.items()})
    more = {"environment": environment(), "details": kept if details else shareable(kept)}
    emit({**total.to_json(), **facts, **more}, json, score_lines(scored, total))


def read_test(kind: Task, data: str | None, harness_task: str | None) -> TaskData | None:
    """The data to score on; None where a task of lm-eval's own fetches it, which is tried now.

    Raises:
        OffsiteError: both, or neither.
    """
    from offsite.scores.harness import find_tasks
    from offsite.tasks.data import need_source, read_data

    if harness_task is None:
        return read_data(kind, need_source(kind, data, "test"))
    if data is not None:
        raise OffsiteError(
            "--harness-task fetches its own data, so --data has no effect; give one of the two."
        )
    note(f"fetching the data of '{harness_task}'")
    find_tasks([harness_task])
    return None
