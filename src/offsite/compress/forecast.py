"""What a recipe will take on this machine, measured on one row before it begins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from offsite.compress.step import Context, Needs, Step
from offsite.model.blocks import get_blocks
from offsite.model.replay import forward
from offsite.training.devices import own_generators


def forecast(recipe: Sequence[Step], context: Context) -> list[str]:
    """One line for each step that reads data: its rows, its tokens and about how long it takes.

    The time is that of one forward pass over one row on this machine, times the passes that the
    step says it needs; a step that computes many rows at once may take less.
    """
    steps = [step for step in recipe if step.needs.rows]
    if not steps or context.data is None or context.task is None:
        return []
    batch = one_row(context)
    each = seconds_of(context.model, batch)
    lines = []
    for step in steps:
        rows = rows_of(step.needs, context.data)
        words = f"{step.kind}: {rows:,} rows of data"
        if "input_ids" in batch:
            words += f", at most {rows * batch['input_ids'].shape[1]:,} tokens"
        seconds = passes_in(step, context) * each
        lines.append(f"{words}, about {span(seconds)} on this machine")
    return lines


def one_row(context: Context) -> Mapping[str, torch.Tensor]:
    """The first row of the data; no generator of the run moves."""
    with own_generators():  # a loader draws a seed
        return next(context.batches(1, 1))


def passes_in(step: Step, context: Context) -> float:
    """:func:`passes_of` a step with this model and data."""
    return passes_of(step.needs, context.data, len(get_blocks(context.model)))


def rows_of(needs: Needs, data: Any) -> int:
    """How many rows of some data a step looks at."""
    return min(needs.rows, len(data)) if needs.bounded else needs.rows


def passes_of(needs: Needs, data: Any, total: int) -> float:
    """How many forward passes over one row of some data a step takes.

    Args:
        total: how many blocks the model has.
    """
    return rows_of(needs, data) * needs.passes * (total if needs.every_block else 1)


@torch.no_grad()
def seconds_of(model: Any, batch: Mapping[str, torch.Tensor]) -> float:
    """Seconds of one forward pass where the model is; the first of two is not counted."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    forward(model, batch)
    settle(model)
    start = time.perf_counter()
    forward(model, batch)
    settle(model)
    return time.perf_counter() - start


def settle(model: Any) -> None:
    """Wait until the model's device has done what it was given."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def span(seconds: float) -> str:
    """A length of time in words, such as ``"40 s"``, ``"12 min"`` or ``"2.5 h"``."""
    if seconds < 1:
        return "1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
