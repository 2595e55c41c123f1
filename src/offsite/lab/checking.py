"""Data read as a task would read it, before any model loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from offsite.compress.align import Align
from offsite.compress.crash import Cluster
from offsite.compress.distill import Distill
from offsite.compress.drop import Drop
from offsite.compress.gradot.step import GradOT
from offsite.compress.narrow import Narrow
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.step import Step
from offsite.errors import OffsiteError
from offsite.exchange.offer import load_processor
from offsite.lab.plan import Plan, Recipe
from offsite.model.checkpoint import load_config
from offsite.model.split import parse_adapter
from offsite.tasks import check_data, default_data
from offsite.tasks.source import Source
from offsite.tasks.task import Task


def choose_data(task: Task, given: str | None, split: str) -> str | None:
    """The data a user gave, else what the task file names for ``"train"`` or ``"test"``."""
    if given is not None:
        return given
    found = default_data(task, split)
    return None if found is None else str(found)


def need_data(task: Task, given: str | None, split: str, option: str = "--data") -> str:
    """Like :func:`choose_data`, where there must be some.

    Raises:
        OffsiteError: neither was given.
    """
    found = choose_data(task, given, split)
    if found is None:
        raise OffsiteError(
            f"There is no data for the task '{task.name}'; give it with {option}, or name it as "
            f"'{split}' in a task file."
        )
    return found


def check_sources(
    task: Task, sources: Iterable[str | None], model: str | Path | None = None
) -> None:
    """Read data files without any model.

    Args:
        sources: paths; None is passed over.
        model: folder or hub name, whose tokenizer and context length tell what is too long.

    Raises:
        OffsiteError: a missing or malformed file, a missing column, an unknown label, or what is
            longer than the model can read; file and line are named.
    """
    given = list(dict.fromkeys(source for source in sources if source is not None))
    for source in given:
        Source.of(source).check()
        check_data(task, source)
    if given and model is not None and hasattr(task, "check"):
        config, processor = load_config(model), load_processor(model, task.name)
        for source in given:
            check_data(task, source, processor, config)


def check_plan(plan: Plan) -> None:
    """The data of a plan of the lab, and whether its recipes have what they need.

    Raises:
        OffsiteError: see :func:`check_sources`; a recipe that needs data of the owner, and none; or
            one whose adapter is none.
    """
    for name, value in plan.recipes.items():
        recipe = Recipe.of(value, plan.adapter)
        if recipe.learned_blocks is None:
            parse_adapter(recipe.adapter)
        elif not recipe.trainings:
            raise OffsiteError(
                f"The recipe '{name}' has the adapter '{recipe.adapter}' and no layer_replace step "
                "that learns importance; give it one, or name the blocks."
            )
        if plan.calibration is None and needs_data(recipe.steps):
            raise OffsiteError(
                f"The recipe '{name}' needs calibration data of the owner; give it with "
                "--calibration, or leave the recipe out."
            )
    private, public = plan.tasks()
    check_sources(private, (plan.eval_data, plan.data), plan.model)
    check_sources(public, (plan.calibration,), plan.model)


def needs_data(steps: Iterable[Step]) -> bool:
    """Whether some step looks at data of the owner."""
    return any(
        isinstance(step, (Align, Cluster, Distill, GradOT, Narrow))
        or (isinstance(step, Drop) and step.by not in ("uniform", "random"))
        or (isinstance(step, LayerReplace) and step.learned is None)
        for step in steps
    )
