"""Forecast the time that a recipe takes on this machine, measured on one row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from offsite.compress.decomposition import decompose
from offsite.compress.linears import linears
from offsite.compress.step import Context, Needs, Step
from offsite.model.blocks import get_blocks
from offsite.model.layers import linear_shape
from offsite.model.replay import forward
from offsite.training.devices import fork_generators

SIDE = 512  # of the matrix that is decomposed to see how fast this machine is


def forecast(recipe: Sequence[Step], context: Context) -> list[str]:
    """One line for each step that reads data or decomposes matrices, with about how long it takes.

    The time is that of one forward pass over one row on this machine, times the passes that the
    step says it needs, and that of a small decomposition, scaled to the matrices of the middle. A
    step that computes many rows at once, or that comes after blocks were dropped, may take less.
    """
    reads = context.data is not None and context.task is not None
    batch = one_row(context) if reads and any(step.needs.rows for step in recipe) else None
    each = 0.0 if batch is None else seconds_of(context.model, batch)
    lines = []
    for step in recipe:
        words, shapes = [], decomposed(step, context.model, context.split.middle)
        if step.needs.rows and batch is not None:
            rows = rows_of(step.needs, context.data)
            words.append(f"{rows:,} rows of data")
            if "input_ids" in batch:
                words.append(f"at most {rows * batch['input_ids'].shape[1]:,} tokens")
        if shapes:
            words.append(f"at most {len(shapes):,} matrices to decompose")
        if words:
            seconds = seconds_in(step, context, each, shapes)
            lines.append(f"{step.kind}: {', '.join(words)}, about {span(seconds)} on this machine")
    return lines


def seconds_in(
    step: Step, context: Context, each: float, shapes: Sequence[tuple[int, int]]
) -> float:
    """About how long a step takes.

    Args:
        each: the time of one forward pass over one row.
        shapes: of the matrices that it decomposes, as :func:`decomposed` lists them.
    """
    passes = 0.0 if context.data is None else passes_in(step, context)
    return passes * each + decomposing(shapes, context.device)


def decomposed(step: Step, model: nn.Module, positions: Iterable[int]) -> list[tuple[int, int]]:
    """The shapes of the matrices of some blocks that a step takes singular values of."""
    chosen = step.needs.decomposes
    if chosen is None:
        return []
    blocks = get_blocks(model)
    layers = [pair for position in positions for pair in linears(blocks[position])]
    shapes = [linear_shape(layer) for name, layer in layers if chosen(name)]
    return [shape for shape in shapes if shape is not None]


def decomposing(shapes: Sequence[tuple[int, int]], device: torch.device) -> float:
    """Seconds for the singular values of matrices: a small one is timed, and costs are cubic."""
    if not shapes:
        return 0.0
    small = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    each = timed(lambda: decompose(small), device) / SIDE**3
    return each * sum(a * b * min(a, b) for a, b in shapes)


def one_row(context: Context) -> Mapping[str, torch.Tensor]:
    """The first row of the data; no generator of the run moves."""
    with fork_generators():  # a loader draws a seed
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
    """Seconds of one forward pass where the model is."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    return timed(lambda: forward(model, batch), device)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second of two runs on a device; the first warms up."""
    run()
    settle(device)
    start = time.perf_counter()
    run()
    settle(device)
    return time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def span(seconds: float) -> str:
    """A length of time in words, such as ``"40 s"``, ``"12 min"`` or ``"2.5 h"``."""
    if seconds < 1:
        return "1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
