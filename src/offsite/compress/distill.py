"""Distillation of the emulator towards the real middle (Offsite-Tuning, arXiv 2302.04870)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.compress.step import Context, Needs
from offsite.compress.student import Taught, make_student
from offsite.errors import OffsiteError, require
from offsite.model.blocks import freeze
from offsite.model.replay import observe, record_calls, relative_error, replay
from offsite.model.split import Middle, Split, emulator_layout
from offsite.training.options import TrainOptions
from offsite.training.train import train


@dataclass(frozen=True)
class Distill:
    """Train the emulator's middle on the owner's data; the adapter is frozen.

    ``loss = lm_weight * task loss + kd_weight * mean(((T - S) / rms(T))^2)`` where S and T are the
    hidden states after each run of middle blocks, of the emulator and of the full model, which get
    the same input states; several runs (an adapter with interior blocks) are averaged. The paper
    writes the second term for one run only; ``rms`` is taken over the batch. Paper: lm 1, kd 30, lr
    1e-4; vision lm 0, kd 1.
    """

    steps: int = 1000
    lr: float = 1e-4
    batch_size: int = 8
    lm_weight: float = 1.0
    kd_weight: float = 30.0

    kind: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        require(
            min(self.lm_weight, self.kd_weight) >= 0 < self.lm_weight + self.kd_weight < math.inf,
            f"Weights of {self.lm_weight} and {self.kd_weight} leave nothing to distil; use "
            "0 or more, and more than 0 for at least one of them.",
        )
        TrainOptions(steps=self.steps, lr=self.lr, batch_size=self.batch_size)

    @property
    def needs(self) -> Needs:
        """Calibration data and a work folder."""
        return Needs(data=True, rows=self.steps * self.batch_size, passes=2, work=True)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        if context.data is None or context.task is None:
            raise OffsiteError("Distillation needs data of the owner; give it with --data.")
        student, emulator = make_student(middle, context)
        pair = _Pair(context, student, emulator, self.lm_weight, self.kd_weight)
        train(
            pair,
            context.data,
            loss=lambda model, batch, items: model(batch, items),
            collate=context.task.collate,
            options=TrainOptions(
                steps=self.steps, lr=self.lr, batch_size=self.batch_size, seed=context.seed
            ),
            device=context.device,
            work=context.work,
            resume=context.resume,
            text="distilling",
            divisible=False,  # rms(T) is that of the whole batch
        )
        freeze(pair)
        return student


class _Pair(Taught):
    """The student and the full middle, with the same input states."""

    def __init__(
        self, context: Context, student: Middle, emulator: nn.Module, lm: float, kd: float
    ) -> None:
        super().__init__(student)
        self.hidden = (context, student, emulator)  # a tuple is not a sub-module
        self.lm, self.kd = lm, kd

    def forward(self, batch: Mapping[str, Any], items: torch.Tensor | None) -> torch.Tensor:
        context, student, emulator = self.hidden
        assert context.task is not None
        loss, states = torch.zeros((), device=context.device), None
        if self.lm:
            after = block_after(student, context.split)
            with record_calls(emulator, () if after is None else (after,)) as seen:
                loss = self.lm * context.task.loss(emulator, batch, items)
            states = None if after is None else seen[after].inputs
        if self.kd:
            with torch.no_grad():
                calls = observe(context.model, batch, until=context.split.middle[-1])
            if states is None:
                error = segment_error(context, student, calls)
            else:  # the emulator has run them, and on the same inputs
                error = relative_error(states, calls[context.split.middle[-1]])
            loss = loss + self.kd * error
        return loss


def block_after(student: Middle, split: Split) -> int | None:
    """The position in the emulator of the block that reads the output of the middle.

    None if that is not a block, or where the middle is in several runs: the inputs of the later
    ones are not those of the real model.
    """
    if len(split.segments) > 1 or split.middle[-1] > max(split.adapter):
        return None
    order, _ = emulator_layout(split, student.positions)
    return sum(position < split.middle[-1] + 1 for position in order)


def segment_error(context: Context, student: Middle, calls: Mapping[int, Any]) -> torch.Tensor:
    """Mean over the middle's runs of ``mean(((T - S) / rms(T))^2)``."""
    errors = []
    for segment in context.split.segments:
        inside = [p for p in student.positions if p in segment]
        state, target = calls[segment[0]].inputs, calls[segment[-1]]
        output = replay(student.between(segment), inside, calls, state)
        errors.append(relative_error(output, target))
    return torch.stack(errors).mean()
