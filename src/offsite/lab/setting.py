"""The setting that the cells of one plan share: model, processor, data and device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from offsite.lab.cells import finite
from offsite.lab.checking import PlanData, check_plan
from offsite.lab.plan import Plan, Tuning
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import parse_dtype
from offsite.model.heads import attach_head, labels_of, same_classes
from offsite.tasks.data import TaskData
from offsite.tasks.task import Evaluation
from offsite.training.devices import pick_device
from offsite.training.precision import with_precision


class Setting:
    """A plan with its model loaded and its data read.

    Attributes:
        loaded: the full model, where it was loaded; :attr:`model` is the same on ``device``.
        options: how to tune, in the precision that fits the device.
        tunings: the deltas of the plan, by their names there.
    """

    def __init__(self, plan: Plan, device: str | None = None, data: PlanData | None = None) -> None:
        self.plan, self.device = plan, pick_device(device)
        self.task, self.public = plan.tasks()
        self.data = data or check_plan(plan)
        self.processor = self.data.checkpoint.processor
        self.options = with_precision(plan.options, self.device)
        self.tunings: Mapping[str, Tuning] = {
            name: Tuning.of(delta) for name, delta in plan.deltas.items()
        }
        self.loaded = self.data.checkpoint.load(dtype=parse_dtype(plan.dtype))
        for recipe in plan.recipes.values():
            recipe.check(len(get_blocks(self.loaded)))
        plan.prepare(self.loaded)
        self._rows: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def model(self) -> Any:
        """The full model on the device; moved there when something is first computed."""
        return self.loaded.to(self.device)

    def private_rows(self, model: Any) -> Any:
        """The data owner's rows to tune on."""
        assert self.data.private is not None  # no cell that tunes is planned without them
        return self.rows(self.data.private, model)

    def public_rows(self) -> Any:
        """The model owner's calibration rows; None where the plan has no such data."""
        return None if self.data.public is None else self.rows(self.data.public, self.model)

    def rows(self, data: TaskData, model: Any) -> Any:
        """Rows of a data set, made once for each set of classes a model may have."""
        key = (id(data), labels_of(model))
        if key not in self._rows:
            self._rows[key] = data.rows(self.processor, model)
        return self._rows[key]

    def score(self, model: Any) -> dict[str, Any]:
        """The task's evaluation of a model, as JSON; a head for other classes starts fresh."""
        rows = self.rows(self.data.evaluation, model)
        labels = self.task.labels(rows)
        if labels and not same_classes(labels_of(model), labels):
            model = copy.deepcopy(model)
            attach_head(model, labels)
        if not finite(model):
            return {"value": None}
        result: Evaluation = self.task.evaluate(model.to(self.device), rows)
        return asdict(result)
