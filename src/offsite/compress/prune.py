"""Magnitude pruning of the middle (a baseline of Offsite-Tuning, arXiv 2302.04870)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.compress.linears import map_linears, matrix, with_matrix
from offsite.compress.step import Context, Needs
from offsite.errors import check_share
from offsite.model.split import Middle


@dataclass(frozen=True)
class Prune:
    """Set the smallest weights of every linear layer to zero and keep the share ``keep``.

    The zeros are stored, so the offer does not shrink. The threshold is of each matrix by itself;
    the paper does not say what it uses. Biases and norms stay. A later ``Distill`` changes the
    zeros again.
    """

    keep: float

    kind: ClassVar[str] = "prune"

    def __post_init__(self) -> None:
        check_share(self.keep)

    @property
    def needs(self) -> Needs:
        """Nothing but the middle."""
        return Needs()

    def __call__(self, middle: Middle, context: Context) -> Middle:
        def change(position: int, name: str, layer: nn.Module) -> nn.Module | None:
            weight = matrix(layer)
            return None if self.keep == 1 else with_matrix(layer, prune(weight, self.keep))

        return map_linears(middle, change)


def prune(weight: torch.Tensor, keep: float) -> torch.Tensor:
    """A copy of a matrix with exactly ``round(keep * size)`` entries of largest magnitude left."""
    count = max(1, round(keep * weight.numel()))
    chosen = weight.flatten().abs().topk(count, sorted=False).indices
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[chosen] = True
    return weight * mask.view(weight.shape)
