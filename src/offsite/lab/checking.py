"""Data read as a task would read it, before any model loads."""

from __future__ import annotations

from dataclasses import dataclass

from offsite.errors import OffsiteError
from offsite.lab.plan import Plan
from offsite.model.checkpoint import Checkpoint
from offsite.model.kind import TEXT
from offsite.model.split import learned
from offsite.tasks.data import TaskData, prepare_all
from offsite.tasks.source import Source


@dataclass(frozen=True)
class PlanData:
    """The data sets of a plan, read and found to fit its model, and that model by its name."""

    checkpoint: Checkpoint
    evaluation: TaskData
    private: TaskData | None
    public: TaskData | None


def check_plan(plan: Plan) -> PlanData:
    """Read the data of a plan of the lab, and see whether its recipes have what they need.

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
    for how in plan.decode.values():
        how.check()
    if plan.decode and private.auto_class != TEXT.auto_class:
        raise OffsiteError("Decoding is for language models; leave 'decode' out of the plan.")
    checkpoint = Checkpoint.of(plan.model, private.auto_class)
    data = PlanData(
        checkpoint,
        TaskData(private, Source.of(plan.eval_data)),
        None if plan.data is None else TaskData(private, Source.of(plan.data), train=True),
        None if plan.calibration is None else TaskData(public, Source.of(plan.calibration), True),
    )
    sets = [one for one in (data.evaluation, data.private, data.public) if one is not None]
    for one in sets:
        one.check()
    prepare_all(sets, checkpoint.processor, checkpoint.config)
    return data
