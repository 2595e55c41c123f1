"""Attackers that train: the adapter alone, every weight, or a model of random weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from offsite.errors import OffsiteError
from offsite.lab.baselines import tune_all
from offsite.model.blocks import freeze, get_blocks
from offsite.tasks.task import Task
from offsite.training.options import TrainOptions
from offsite.training.train import train

FEWEST = 20
MOST = 64  # rows to validate on and to test on, each


@dataclass(frozen=True)
class Effort:
    """What attackers may spend.

    Attributes:
        tokens: numbers of training tokens, each tried.
        rates: learning rates, each tried at each number of tokens.
        options: batch size, schedule and seed; steps and rate come from the two above.
    """

    tokens: tuple[int, ...] = (65_536, 262_144)
    rates: tuple[float, ...] = (3e-4, 1e-3)
    options: TrainOptions = field(default_factory=TrainOptions)

    def runs(self, tokens: int, rows: Any) -> list[TrainOptions]:
        """Training options for each rate, with the steps that use so many tokens of the rows."""
        length = max(len(rows[0].get("input_ids", ())), 1)
        steps = max(1, tokens // (self.options.batch_size * length))
        return [replace(self.options, steps=steps, lr=rate) for rate in self.rates]


def trained_copy(
    model: nn.Module,
    rows: Any,
    task: Task,
    options: TrainOptions,
    device: torch.device,
    adapter: Sequence[int] | None = None,
) -> nn.Module:
    """A trained copy of a model: all of it, or the blocks ``adapter`` alone."""
    model = copy.deepcopy(model)
    if adapter is None:
        tune_all(model, rows, task, options, device, "attacking")
        return model
    freeze(model, [get_blocks(model)[index] for index in adapter])
    train(
        model, rows, loss=task.loss, collate=task.collate, options=options, device=device,
        text="attacking",
    )  # fmt: skip
    return model


@dataclass(frozen=True)
class Bench:
    """Where models are trained and measured: rows to fit, to validate and to test on."""

    task: Task
    device: torch.device
    effort: Effort
    fit: Any
    validation: Any
    test: Any

    @classmethod
    def of(cls, rows: Any, task: Task, device: torch.device, effort: Effort) -> Bench:
        """A bench on rows of the task.

        Every tenth row validates and every tenth tests, at most ``MOST`` each; the rest fit.

        Raises:
            OffsiteError: fewer than ``FEWEST`` rows.
        """
        if len(rows) < FEWEST:
            raise OffsiteError(
                f"An audit needs {FEWEST} rows or more, and the data gives {len(rows)}; give more "
                "text or a smaller --max-length."
            )
        fit = Subset(rows, [i for i in range(len(rows)) if i % 10 < 8])
        held = (Subset(rows, evenly_spaced(range(start, len(rows), 10))) for start in (8, 9))
        return cls(task, device, effort, fit, *held)

    def value(self, model: nn.Module) -> float:
        """The task's metric of a model on the test rows."""
        return float(self.task.evaluate(model.to(self.device), self.test).value)

    def better(self, model: nn.Module) -> float:
        """What a model is worth on the validation rows; larger is better."""
        value = float(self.task.evaluate(model.to(self.device), self.validation).value)
        return worth(value, self.task.higher_is_better)

    def tuned(
        self, model: nn.Module, tokens: int, part: Sequence[int] | None = None
    ) -> tuple[nn.Module, float | None]:
        """A copy that was tuned at the best rate, all of it or some blocks, and that rate."""
        tried = [
            (trained_copy(model, self.fit, self.task, options, self.device, part), options.lr)
            for options in self.effort.runs(tokens, self.fit)
        ]
        return max(tried, key=lambda run: self.better(run[0])) if len(tried) > 1 else tried[0]


def evenly_spaced(places: range) -> list[int]:
    """At most ``MOST`` of some places, evenly spread over them."""
    return list(places[:: max(1, math.ceil(len(places) / MOST))])


@torch.no_grad()
def random_weights(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same shape whose matrices are drawn anew (standard deviation 0.02).

    Vectors (biases and norms) stay, so the control knows a little more than nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = copy.deepcopy(model).cpu()
    for parameter in fresh.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return fresh


def worth(value: float, higher_is_better: bool) -> float:
    """A value of a metric so that larger is better; the worst where training diverged."""
    return (value if higher_is_better else -value) if math.isfinite(value) else -math.inf
