"""Importance of every middle block by signals that need no training."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from offsite.compress.step import Context
from offsite.errors import OffsiteError
from offsite.replay import observe
from offsite.split import Middle

BATCHES, ROWS = 16, 8


@torch.no_grad()
def importance(signal: str, middle: Middle, context: Context, *, keep: int) -> Mapping[int, float]:
    """Importance of each standing position, larger meaning keep it."""
    if signal != "influence":
        raise OffsiteError(f"'{signal}' is no importance signal.")
    scores = dict.fromkeys(middle.positions, 0.0)
    for batch in context.batches(BATCHES, ROWS):
        calls = observe(context.model, batch)
        for position in scores:
            call = calls[position]
            cosine = torch.cosine_similarity(call.inputs.float(), call.output.float(), dim=-1)
            scores[position] += (1 - cosine.mean().item()) / BATCHES
    return scores
