"""Greedy choice of blocks: remove the least important one, again and again. Ours.

Rankings such as block influence judge every block in the full model. Here each block is judged in
the emulator that the earlier removals left, so two blocks that stand in for one another are not
both removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from offsite.compress.step import Context
from offsite.model.replay import forward, real_tokens
from offsite.model.split import Middle, join
from offsite.training.progress import track

BATCHES, ROWS = 2, 8


@torch.no_grad()
def greedy(middle: Middle, context: Context, keep: int) -> tuple[int, ...]:
    """The ``keep`` positions that greedy removal leaves.

    A removal costs the divergence of the emulator's predictions from the model's, on 16 rows of
    the owner's data: the Kullback-Leibler divergence in nats per token (or per picture), or, for a
    model without logits, the relative squared error of its last hidden states (batch, length,
    hidden). Of equal costs the earlier block goes.
    """
    batches = list(context.batches(BATCHES, ROWS))
    wanted = [_answer(context.model, batch) for batch in batches]
    kept = tuple(middle.positions)
    for _ in track(range(len(kept) - keep), "choosing blocks", len(kept) - keep):
        costs = {}
        for position in kept:
            rest = tuple(p for p in kept if p != position)
            emulator, _ = join(context.model, context.split, middle.at(rest))
            costs[position] = sum(
                _missed(_answer(emulator, batch), answer)
                for batch, answer in zip(batches, wanted, strict=True)
            )
        kept = tuple(p for p in kept if p != min(costs, key=lambda p: costs[p]))
    return kept


def _answer(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, bool]:
    """What a model says of each real token or picture, and whether it is log-probabilities."""
    output = forward(model, batch)
    logits = getattr(output, "logits", None)
    states = output.last_hidden_state if logits is None else logits
    real = real_tokens(batch)
    if real is not None and states.dim() == 3:
        states = states[real]
    states = states.float().flatten(0, -2)
    return (states, False) if logits is None else (states.log_softmax(-1), True)


def _missed(found: tuple[torch.Tensor, bool], wanted: tuple[torch.Tensor, bool]) -> float:
    if wanted[1]:
        divergence = nn.functional.kl_div(
            found[0], wanted[0], log_target=True, reduction="batchmean"
        )
        return divergence.item()
    return ((found[0] - wanted[0]).square().mean() / wanted[0].square().mean()).item()
