"""Read the data of an experiment and check it before any model loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offsite.errors import OffsiteError
from offsite.lab.plan import Plan
from offsite.model.checkpoint import Checkpoint
from offsite.model.heads import check_scored
from offsite.model.split import learned
from offsite.tasks.data import TaskData, prepare_all
from offsite.tasks.source import Source
from offsite.tasks.task import Task


@dataclass(frozen=True)
class PlanData:
    """The data sets of a plan, read and found to fit its model, and that model by its name."""

    checkpoint: Checkpoint
    evaluation: TaskData
    private: TaskData | None
    public: TaskData | None


def check_plans(plans: Sequence[Plan], *, read: bool = True) -> list[PlanData]:
    """:func:`check_plan` of each; what several plans read of one model is read once."""
    shared: dict[tuple[Any, ...], Any] = {}
    return [check_plan(plan, shared, read=read) for plan in plans]


def check_plan(
    plan: Plan, shared: dict[tuple[Any, ...], Any] | None = None, *, read: bool = True
) -> PlanData:
    """Read the data of a plan of the lab, and see whether its recipes have what they need.

    Args:
        shared: what earlier plans read, which grows.
        read: whether to read the data; otherwise it must only be there.

    Raises:
        OffsiteError: missing or malformed data; a recipe that needs data of the owner, and none; or
            one that learns its adapter without a step that learns importance.
    """
    for name, recipe in plan.recipes.items():
        if isinstance(recipe.adapter, learned) and not recipe.trainings:
            raise OffsiteError(
                f"The recipe '{name}' has the adapter '{recipe.adapter}' and no layer_replace step "
                "that learns importance; give it one, or name the blocks."
            )
        if plan.calibration is None and any(step.needs.data for step in recipe.steps):
            raise OffsiteError(
                f"The recipe '{name}' needs calibration data of the owner; give it with "
                "--calibration, or leave the recipe out."
            )
    private, public = plan.tasks()
    decoded = [how.data(private.name) for how in plan.decode.values()]
    known = {} if shared is None else shared
    model = plan.model, private.auto_class
    checkpoint = known.setdefault(model, Checkpoint.of(*model))

    def one_set(task: Task, name: str, path: str, train: bool) -> TaskData:
        key = (*model, name, plan.max_length, plan.skip_bad, path, train)
        found: TaskData = known.setdefault(key, TaskData(task, Source.of(path), train))
        return found

    own, kind = plan.calibration_task or plan.task, plan.task
    data = PlanData(
        checkpoint,
        one_set(private, kind, plan.eval_data, False),
        None if plan.data is None else one_set(private, kind, plan.data, True),
        None if plan.calibration is None else one_set(public, own, plan.calibration, True),
    )
    sets = [one for one in (data.evaluation, data.private, data.public) if one is not None]
    for one in (*sets, *(one for one in decoded if one is not None)):
        if read:
            one.check()
        else:
            one.source.check()
    if read:
        prepare_all(sets, checkpoint.processor, checkpoint.config)
        if data.private is not None:
            pair = (data.private, data.evaluation)
            examples = (one.prepare(checkpoint.processor, checkpoint.config) for one in pair)
            check_scored(*map(private.labels, examples))
    return data
