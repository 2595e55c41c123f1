"""Importance of every block by measures that need no training; keep the largest.

``influence``: one minus the cosine between a block's input and output, mean over all tokens
(block influence of ShortGPT, arXiv 2403.03853, equation 1).

``angular``: the angle between the input of a run of n blocks and its output, over pi, 0..1 (Gromov
et al., arXiv 2403.17887, equation 7). The paper looks at the last token of each text; ours is the
mean over all tokens, since calibration windows end anywhere.

``leave_one_out``: the rise of the task's loss, in its own unit (nats per token), when a block is
passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from offsite.compress.step import Context
from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.model.replay import Call, observe
from offsite.model.split import Split
from offsite.training.progress import track

BATCHES, ROWS = 16, 8
SIGNALS = ("influence", "angular", "leave_one_out")


@torch.no_grad()
def importance(
    context: Context,
    signals: Sequence[str] = SIGNALS,
    learned: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, tuple[float, ...]]:
    """All signals of all blocks of the model, adapter or not, side by side.

    Args:
        context: model and calibration data.
        signals: which of :data:`SIGNALS`.
        learned: further per-block scores to add, such as ScaleOT's.

    Returns:
        For each signal one number per position of the model.

    Raises:
        OffsiteError: no calibration data, an unknown signal, or learned scores of another length.
    """
    for signal in signals:
        if signal not in SIGNALS:
            raise OffsiteError(f"'{signal}' is not a signal; choose one of: {', '.join(SIGNALS)}.")
    total, count = len(get_blocks(context.model)), batches(context.data)
    sums: dict[str, list[float]] = {signal: [0.0] * total for signal in signals}
    for batch in track(context.batches(count, ROWS), "measuring blocks", count):
        calls = observe(context.model, batch)
        for position, call in calls.items():
            if "influence" in sums:
                sums["influence"][position] += influence(call) / count
            if "angular" in sums:
                sums["angular"][position] += angle(call, call) / count
        if "leave_one_out" in sums:
            base = loss_of(context, batch)
            for position in range(total):
                with bypass(context.model, [position]):
                    rise = loss_of(context, batch) - base
                sums["leave_one_out"][position] += rise / count
    table = {signal: tuple(values) for signal, values in sums.items()}
    for name, scores in (learned or {}).items():
        if len(scores) != total:
            raise OffsiteError(
                f"The scores '{name}' are of {len(scores)} blocks, but this model has {total}; "
                "measure them on this model."
            )
        table[name] = tuple(float(score) for score in scores)
    return table


@torch.no_grad()
def weakest_run(context: Context, positions: Sequence[int], length: int) -> tuple[int, ...]:
    """The ``length`` consecutive standing blocks that turn the hidden states least.

    Runs are of ``positions`` (those still standing) and never reach across an adapter block. The
    angle is measured in the full model.

    Raises:
        OffsiteError: no run of the middle is that long.
    """
    runs = list(candidate_runs(context.split, positions, length))
    if not runs:
        longest = max(
            len([p for p in positions if p in segment]) for segment in context.split.segments
        )
        raise OffsiteError(
            f"No {length} blocks of the middle are consecutive (the longest run is {longest}); "
            "keep more blocks, or drop by influence."
        )
    angles = [0.0] * len(runs)
    count = batches(context.data)
    for batch in track(context.batches(count, ROWS), "measuring runs of blocks", count):
        calls = observe(context.model, batch)
        for index, run in enumerate(runs):
            angles[index] += angle(calls[run[0]], calls[run[-1]])
    return runs[angles.index(min(angles))]


def batches(data: Any) -> int:
    """How many batches to measure on: data of fewer rows is looked at once."""
    return BATCHES if data is None else min(BATCHES, math.ceil(len(data) / ROWS))


def candidate_runs(
    split: Split, positions: Sequence[int], length: int
) -> Iterator[tuple[int, ...]]:
    """Every run of ``length`` standing positions within one segment of the middle."""
    for segment in split.segments:
        standing = [p for p in positions if p in segment]
        for start in range(len(standing) - length + 1):
            yield tuple(standing[start : start + length])


def influence(call: Call) -> float:
    """One minus the mean cosine of a block's input and output states."""
    states = call.tokens(call.inputs).float(), call.tokens(call.output).float()
    cosine = torch.cosine_similarity(*states, dim=-1)
    return 1 - cosine.mean().item()


def angle(first: Call, last: Call) -> float:
    """Mean angle between the first call's input and the last's output, over pi: 0..1."""
    states = first.tokens(first.inputs).double(), last.tokens(last.output).double()
    cosine = torch.cosine_similarity(*states, dim=-1).clamp(-1, 1)
    return (torch.acos(cosine) / math.pi).mean().item()


def loss_of(context: Context, batch: Mapping[str, Any]) -> float:
    """The task's loss of the full model on one batch."""
    assert context.task is not None
    return context.task.loss(context.model, batch).item()


@contextmanager
def bypass(model: nn.Module, positions: Iterable[int]) -> Iterator[None]:
    """Within the ``with``, the blocks at ``positions`` hand their input on unchanged."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    with ExitStack() as stack:
        for position in positions:
            handle = get_blocks(model)[position].register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield
