"""The divergence of two models' predictions, computed without holding all logits.

As with cross entropy, a few hundred rows of logits exist at a time, and their gradient is taken
while they exist (Hsu et al., Liger Kernel, arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offsite.tasks.text.cross_entropy import (
    FrozenHead,
    computed_in,
    forward_to_head,
    rows_at_a_time,
)
from offsite.training.compiling import fusible

Logits = Callable[[slice], torch.Tensor]  # of some tokens: (tokens, vocabulary), in float32


@dataclass(frozen=True)
class Predictions:
    """What a model predicts at every token of a batch.

    Attributes:
        states: (tokens, hidden) that ``head`` turns into logits; without a head these are the
            logits, (tokens, vocabulary).
        head: the linear head of the model, or None where its logits cannot be put off.
    """

    states: torch.Tensor
    head: nn.Linear | None

    @classmethod
    def of(
        cls, model: nn.Module, batch: Mapping[str, Any], real: torch.Tensor | None
    ) -> Predictions | None:
        """The predictions at the real tokens (batch, length); None for a model without logits."""
        output, head = forward_to_head(model, batch)
        states = getattr(output, "logits", None)
        if states is None:
            return None
        if real is not None and states.dim() == 3:
            return cls(states[real], head)
        return cls(states.flatten(0, -2), head)

    def logits(self, part: slice) -> torch.Tensor:
        """The logits of some of the tokens, in float32."""
        states = self.states[part]
        return (states if self.head is None else self.head(states)).float()


def divergence(found: Predictions, wanted: Logits) -> torch.Tensor:
    """The mean Kullback-Leibler divergence from the ``wanted`` predictions, in nats per token.

    The gradient goes to the states of ``found`` alone, so its head has to be frozen.
    """
    head, count = found.head, len(found.states)
    if head is None or any(parameter.requires_grad for parameter in head.parameters()):
        everything = slice(None)
        return compared(found.logits(everything), wanted(everything))[0].sum() / count
    weight, bias = computed_in(head, found.states.device.type)
    states = found.states.to(weight.dtype)

    def compare(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return compared(logits, wanted(part))

    losses: torch.Tensor = FrozenHead.apply(states, weight, bias, rows_at_a_time(head), compare)  # type: ignore
    return losses.sum() / count


@fusible
def compared(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence of each row in float32, and its gradient by ``logits``."""
    found = logits.log_softmax(-1, dtype=torch.float32)
    wanted = target.log_softmax(-1, dtype=torch.float32)
    share = wanted.exp()
    return (share * (wanted - found)).sum(-1), found.exp() - share
