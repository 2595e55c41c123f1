"""Low-rank linear layers by truncated singular value decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from offsite.compress.decomposition import decompose
from offsite.compress.linears import map_linears, matrix, with_matrix
from offsite.compress.step import Context, Needs
from offsite.errors import require
from offsite.model.layers import LowRankLinear, is_attention
from offsite.model.split import Middle


@dataclass(frozen=True)
class Rank:
    """Keep the largest share ``1 - beta`` of the singular values of every chosen linear layer.

    ``layers="attention"`` is ScaleOT's selective rank compression (arXiv 2412.09812): query, key,
    value and output projections, never the feed-forward ones; ``"all"`` takes these too. At least
    one singular value stays; ``beta`` 0 changes nothing.

    The layer is stored as two factors where that is smaller than the dense matrix; for a square one
    this needs ``beta > 0.5``. Otherwise it stays one dense matrix of low rank, which is not smaller
    and not slower. A fused projection (GPT-2's and BLOOM's query-key-value) is one matrix here,
    factorised as a whole, which is ours.
    """

    beta: float
    layers: Literal["attention", "all"] = "attention"

    kind: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        require(
            0 <= self.beta < 1,
            f"A beta of {self.beta} is not a share of the rank; use 0 to below 1.",
        )

    @property
    def needs(self) -> Needs:
        """Nothing but the middle."""
        if self.beta == 0:
            return Needs()
        return Needs(decomposes=is_attention if self.layers == "attention" else lambda name: True)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        def change(position: int, name: str, layer: nn.Module) -> nn.Module | None:
            if self.beta == 0 or (self.layers == "attention" and not is_attention(name)):
                return None
            weight = matrix(layer)
            keep = max(1, round((1 - self.beta) * min(weight.shape)))
            return factorised(layer, *largest(weight, keep))

        return map_linears(middle, change, factors=False)


def largest(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (outputs, rank) and (rank, inputs) whose product is the best approximation."""
    u, s, v = decompose(weight)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def factorised(layer: nn.Module, up: torch.Tensor, down: torch.Tensor) -> nn.Module:
    """A layer for ``up @ down``: two factors if they are smaller than the matrix, else dense."""
    (outputs, rank), inputs = up.shape, down.shape[1]
    if rank * (outputs + inputs) >= outputs * inputs:
        return with_matrix(layer, up @ down)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    new = LowRankLinear(inputs, outputs, rank, bias is not None).to(weight.device, weight.dtype)
    with torch.no_grad():
        new.up.weight.copy_(up)
        new.down.weight.copy_(down)
    if bias is not None:
        new.up.bias = bias  # type: ignore[assignment]
    return new.requires_grad_(weight.requires_grad)
