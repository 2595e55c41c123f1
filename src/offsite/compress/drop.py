"""Layer drop: keep some blocks of the middle, by position, at random or by importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from offsite.compress import greedy
from offsite.compress.importance import BATCHES, ROWS, importance, weakest_run
from offsite.compress.step import Context, Needs
from offsite.errors import OffsiteError, require
from offsite.model.split import Middle

Strategy = Literal["uniform", "random", "influence", "angular", "leave_one_out", "greedy"]


@dataclass(frozen=True)
class Drop:
    """Keep ``keep`` blocks of the middle.

    ``uniform`` keeps evenly spaced blocks, first and last included, as in Offsite-Tuning (arXiv
    2302.04870, section 3.3). ``random`` is that paper's baseline. ``influence`` and
    ``leave_one_out`` keep the most important blocks. ``angular`` drops the run of consecutive
    blocks that turns the hidden states least; see :mod:`offsite.compress.importance`. ``greedy``
    drops the least important block again and again; see :mod:`offsite.compress.greedy`. These four
    need calibration data.
    """

    keep: int
    by: Strategy = "uniform"

    kind: ClassVar[str] = "drop"

    def __post_init__(self) -> None:
        require(self.keep >= 1, f"A recipe cannot keep {self.keep} middle blocks; use 1 or more.")

    def plan(self, positions: Sequence[int], seed: int) -> tuple[int, ...] | None:
        """The positions to keep; None if choosing them needs the weights."""
        self._check(len(positions))
        if self.by == "uniform":
            return tuple(positions[i] for i in uniform_indices(len(positions), self.keep))
        if self.by == "random":
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(positions), generator=generator)[: self.keep]
            return tuple(positions[i] for i in sorted(chosen.tolist()))
        return None

    @property
    def needs(self) -> Needs:
        """Calibration data, unless blocks are chosen by position or at random."""
        if self.by in ("uniform", "random"):
            return Needs(plan=self.plan)
        if self.by == "greedy":  # all standing blocks are tried again after each removal
            rows = greedy.ROWS * greedy.BATCHES
            return Needs(data=True, rows=rows, passes=8, every_block=True, plan=self.plan)
        again = self.by == "leave_one_out"
        rows = BATCHES * ROWS
        return Needs(data=True, rows=rows, bounded=True, every_block=again, plan=self.plan)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        kept = self.plan(middle.positions, context.seed)
        if kept is None:
            kept = self._measured(middle, context)
        return middle.at(kept)

    def _measured(self, middle: Middle, context: Context) -> tuple[int, ...]:
        positions = middle.positions
        if self.by == "greedy":
            return greedy.greedy(middle, context, self.keep)
        if self.keep == len(positions):
            return positions
        if self.by == "angular":
            removed = weakest_run(context, positions, len(positions) - self.keep)
            return tuple(p for p in positions if p not in removed)
        scores = importance(context, [self.by])[self.by]
        ranked = sorted(positions, key=lambda p: scores[p], reverse=True)
        return tuple(sorted(ranked[: self.keep]))

    def _check(self, count: int) -> None:
        if self.keep > count:
            raise OffsiteError(
                f"Cannot keep {self.keep} of {count} middle blocks; choose 1 to {count}."
            )


def uniform_indices(count: int, keep: int) -> list[int]:
    """``round(i (count - 1) / (keep - 1))``, i = 0 .. keep - 1; the middle one for ``keep`` 1."""
    if keep == 1:
        return [(count - 1) // 2]
    return [round(i * (count - 1) / (keep - 1)) for i in range(keep)]
