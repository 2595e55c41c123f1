"""Alignment: train the middle to reproduce the full model's hidden states and predictions. Ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.data import Subset

from offsite.compress.changes import ROWS, STEPS, Change, carried, tuned_changes
from offsite.compress.step import Context, Needs
from offsite.compress.student import Taught, make_student
from offsite.errors import OffsiteError, require
from offsite.model.blocks import freeze, get_blocks
from offsite.model.replay import Call, real_tokens, record_calls, relative_error
from offsite.model.split import Middle, Split, emulator_layout
from offsite.tasks.text.divergence import Predictions, divergence
from offsite.training.options import TrainOptions
from offsite.training.progress import say
from offsite.training.train import train

HELD_OUT = 0.05  # share of the owner's rows that tell when alignment has stopped paying
ENOUGH = 0.02  # share of the whole fall of the loss that further steps must bring
CHANGED = 0.7  # share of the steps in which both models carry a change
SIZES = (0.2, 1.5)  # of a change, drawn anew in every such step


@dataclass(frozen=True)
class Align:
    """Train the middle to reproduce the full model; adapter, embeddings and head stay frozen.

    The loss has two parts. ``state_weight`` weights the error of the hidden states (batch, length,
    hidden) after each run of middle blocks: ``mean(|T - S| / |T|)`` per token plus ``mean((T -
    S)^2) / mean(T^2)``, where T is the full model and S the emulator. The first term is there
    because a few tokens have very large states, which would decide alone. ``kl_weight`` weights the
    Kullback-Leibler divergence of the emulator's predictions from the full model's, in nats per
    token; a model without logits has no such part.

    :class:`Distill` gives the middle the full model's states as input and compares states alone.
    Here both models run from end to end, as in tuning. On SmolLM2-135M, rows of the private kind
    recovered 3 points more than books and cost 0.06 nats of margin, because the data owner keeps
    what they teach the emulator.

    With ``changes`` the two models agree after changes such as tuning makes, and not only before.
    First that many low-rank changes of all blocks are tuned in the full model, each on another part
    of the owner's data. Then in 70% of the steps of alignment both models have one of them, at 0.2
    to 1.5 of its size (after LLEOT).

    Attributes:
        steps, lr, batch_size: of AdamW, with a cosine schedule.
        changes: how many changes to tune; 0 aligns the models as they are.
        precision: what to compute in; by default bfloat16 on a GPU that does, else float32.

    Raises:
        OffsiteError: the owner gave no data, or fewer than two rows.
    """

    steps: int = 1000
    lr: float = 3e-4
    batch_size: int = 8
    state_weight: float = 1.0
    kl_weight: float = 1.0
    changes: int = 0
    precision: Literal["float32", "bfloat16"] | None = None

    kind: ClassVar[str] = "align"

    def __post_init__(self) -> None:
        require(
            min(self.state_weight, self.kl_weight) >= 0 < self.state_weight + self.kl_weight,
            f"Weights of {self.state_weight} and {self.kl_weight} leave nothing to align; use "
            "0 or more, and more than 0 for at least one of them.",
        )
        require(self.changes >= 0, f"There cannot be {self.changes} changes; use 0 or more.")
        TrainOptions(steps=self.steps, lr=self.lr, batch_size=self.batch_size)

    @property
    def needs(self) -> Needs:
        """Calibration data and a work folder."""
        rows = self.steps * self.batch_size + self.changes * STEPS * ROWS
        return Needs(data=True, rows=rows, passes=4, work=True)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        if context.data is None or context.task is None:
            raise OffsiteError("Alignment needs data of the owner; give it with --data.")
        rows, held_out = parts(context.data)
        changes = tuned_changes(context, rows, self.changes)
        student, emulator = make_student(middle, context)
        pair = _Pair(context, student, emulator, self, changes)
        history = train(
            pair,
            rows,
            loss=lambda model, batch, items: model(batch),
            collate=context.task.collate,
            options=TrainOptions(
                steps=self.steps,
                lr=self.lr,
                batch_size=self.batch_size,
                precision=self.precision,
                eval_every=max(1, self.steps // 10, 2 * len(held_out) // self.batch_size),
                seed=context.seed,
                compile=False if changes else None,  # hooks that come and go would recompile
            ),
            device=context.device,
            eval_data=held_out,
            work=context.work,
            resume=context.resume,
            text="aligning",
            divisible=False,  # its means are over the whole batch
        )
        freeze(pair)
        say(verdict([(int(p["step"]), p["eval_loss"]) for p in history.points if "eval_loss" in p]))
        return student


def parts(data: Any) -> tuple[Any, Any]:
    """Rows to learn from, and rows held out: the last 5%, at most 64.

    Raises:
        OffsiteError: fewer than two rows.
    """
    count = len(data)
    if count < 2:
        raise OffsiteError(
            f"Alignment needs at least two rows of data, and there is {count}; give more text or "
            "a smaller --max-length."
        )
    held = min(64, max(1, round(HELD_OUT * count)))
    return Subset(data, range(count - held)), Subset(data, range(count - held, count))


def verdict(points: Sequence[tuple[int, float]]) -> str:
    """In one sentence, whether the held-out loss still fell at the end, or when it stopped.

    Args:
        points: steps and losses, in order.
    """
    if len(points) < 2:
        return "align: too few steps to tell whether more would help."
    (_, first), (last, end) = points[0], points[-1]
    low = min(loss for _, loss in points)
    if first <= low:
        return f"align: the held-out loss never fell below its first value, {first:.3f}."
    enough = low + ENOUGH * (first - low)
    step = next(step for step, loss in points if loss <= enough)
    if step >= last:
        return f"align: the held-out loss still fell at step {last} ({end:.3f}); more may help."
    return f"align: it stopped paying at step {step} of {last}, at a held-out loss of {low:.3f}."


def outlets(split: Split, positions: Sequence[int]) -> list[tuple[int, int]]:
    """For each run of middle blocks, the block whose output leaves it: in model and emulator.

    Where no block of a run stands, that of the emulator is the adapter block before it. A run at
    the very start of which nothing stands has no outlet.
    """
    order, _ = emulator_layout(split, positions)
    found = []
    for segment in split.segments:
        before = [index for index, position in enumerate(order) if position <= segment[-1]]
        if before:
            found.append((segment[-1], before[-1]))
    return found


class _Pair(Taught):
    """The student and the full model, both run from end to end."""

    def __init__(
        self,
        context: Context,
        student: Middle,
        emulator: nn.Module,
        step: Align,
        changes: Sequence[Change],
    ) -> None:
        super().__init__(student)
        self.hidden = (context.model, emulator)  # a tuple is not a sub-module
        self.outlets = outlets(context.split, student.positions)
        self.order = emulator_layout(context.split, student.positions)[0]
        self.kept, self.step, self.changes = student.kept, step, changes

    def forward(self, batch: Mapping[str, Any]) -> torch.Tensor:
        teacher, emulator = self.hidden
        with ExitStack() as stack:
            if self.changes and torch.is_grad_enabled() and torch.rand(()) < CHANGED:
                change = self.changes[int(torch.randint(len(self.changes), ()))]
                scale = torch.empty(()).uniform_(*SIZES).item()
                total = range(len(get_blocks(teacher)))
                stack.enter_context(carried(teacher, change, total, scale=scale))
                stack.enter_context(carried(emulator, change, self.order, self.kept, scale))
            return self.loss(batch)

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of the two models as they are."""
        teacher, emulator = self.hidden
        real = real_tokens(batch)
        with torch.no_grad(), record_calls(teacher, [t for t, _ in self.outlets]) as targets:
            wanted = Predictions.of(teacher, batch, real)
        with record_calls(emulator, [s for _, s in self.outlets]) as states:
            found = Predictions.of(emulator, batch, real)
        loss = torch.zeros((), device=next(emulator.parameters()).device)
        for teacher_at, emulator_at in self.outlets:
            target = targets[teacher_at]
            target.real = real
            error = state_error(states[emulator_at].output, target)
            loss = loss + self.step.state_weight * error / len(self.outlets)
        if self.step.kl_weight and found is not None and wanted is not None:
            loss = loss + self.step.kl_weight * divergence(found, wanted.logits)
        return loss


def state_error(state: torch.Tensor, call: Call) -> torch.Tensor:
    """``mean(|T - S| / |T|)`` per token plus ``mean((T - S)^2) / mean(T^2)``, padding left out."""
    found, target = call.tokens(state).float(), call.tokens(call.output).float()
    length = target.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    distance: torch.Tensor = ((target - found).norm(dim=-1) / length).mean()
    return distance + relative_error(state, call)
