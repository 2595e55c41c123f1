"""Score a path: find which of the six scores it gives, load its model, and measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.exchange.file_set import MANIFEST
from offsite.exchange.ledger import APART, MERGED
from offsite.exchange.offer import Offer
from offsite.model.checkpoint import load_model, load_processor
from offsite.model.configuration import load_config
from offsite.owner.serving import load_plugged
from offsite.scores.harness import harness_scores
from offsite.scores.settings import settings_of
from offsite.tasks.data import TaskData, prepare_all
from offsite.tasks.task import Evaluation, Task


@dataclass(frozen=True)
class Scored:
    """A model to score: under which key, with which processor."""

    key: str
    model: nn.Module
    processor: Any


@dataclass(frozen=True)
class Scoring:
    """How models are scored.

    Attributes:
        task: the kind of data.
        test: the data to score on; None where the harness fetches its own.
        device: where to score.
        harness: the name of the task in lm-eval, which then scores; None for the task's own
            evaluation.
        base: the full model that an attached plug-in runs on.
        batch_size: rows at a time.
        max_length: tokens that the harness lets a model read at once; None for as many as it can.
        dtype: precision to score in.
    """

    task: Task
    test: TaskData | None
    device: torch.device
    harness: str | None = None
    base: str | None = None
    batch_size: int = 16
    max_length: int | None = None
    dtype: torch.dtype | None = torch.float32

    def facts(self) -> dict[str, Any]:
        """What a score depends on besides the model, to be written with it."""
        facts = {"task": self.harness} if self.test is None else settings_of(self.task)
        return facts if self.harness is None else {**facts, "max_length": self.max_length}

    def score(self, path: str, role: str | None = None) -> tuple[str, Evaluation]:
        """The score of the model or offer at ``path``, under ``role`` or its own key.

        Raises:
            OffsiteError: nothing that can be scored, data that does not fit the model, or a model
                whose outputs are not finite.
        """
        found = load_scored(
            path, self.task, self.dtype, self.base, partial(prepare_all, (self.test,))
        )
        result = self.evaluate(found.model.to(self.device), found.processor)
        if not math.isfinite(result.value):
            raise OffsiteError(
                f"The outputs of '{path}' are not finite numbers, so it has no score; compute in "
                "another precision (--dtype float32), or tune it again with a lower learning rate."
            )
        return role or found.key, result

    def evaluate(self, model: nn.Module, processor: Any) -> Evaluation:
        """The score of a model in memory."""
        if self.harness is not None:
            tasks = [self.harness] if self.test is None else {self.harness: self.test}
            found = harness_scores(
                model, processor, tasks, batch_size=self.batch_size, max_length=self.max_length
            )
            return found[self.harness]
        assert self.test is not None
        rows = self.test.rows(processor, model)
        return self.task.evaluate(model, rows, batch_size=self.batch_size)


def load_scored(
    path: str,
    task: Task,
    dtype: torch.dtype | None,
    base: str | None,
    before: Callable[[Any, Any], None] = lambda processor, config: None,
) -> Scored:
    """Load what a path holds: an offer, a merged or attached plug-in, or a full model.

    Args:
        base: the full model that an attached plug-in runs on.
        before: called with the processor and the configuration, before weights are read.

    Raises:
        OffsiteError: an adapter without ``base``, or nothing that can be scored.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        offer = Offer.load(folder, dtype=dtype, before=before)
        return Scored("emulator_zero_shot", offer.model, offer.processor)
    if (folder / APART).is_file():
        if base is None:
            raise OffsiteError(
                f"'{path}' is an adapter; name the full model it runs on with --base."
            )
        processor = load_processor(base, task.name)
        before(processor, load_config(base))
        model = load_plugged(load_model(base, task.auto_class), folder)
        return Scored("plug_in", model.to(dtype), processor)
    config, processor = load_config(path), load_processor(path, task.name)
    before(processor, config)
    model = load_model(path, task.auto_class, dtype=dtype)
    key = "plug_in" if (folder / MERGED).is_file() else "zero_shot"
    return Scored(key, model, processor)
