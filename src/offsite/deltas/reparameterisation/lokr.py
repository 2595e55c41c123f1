"""Kronecker products as updates through peft (LoKr; KronA, arXiv 2212.10650)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, target_names
from offsite.errors import require


@dataclass(frozen=True)
class LoKr(ThroughPeft):
    """``W + (alpha / rank) C (x) (B A)``: a Kronecker product with a low-rank factor.

    The delta holds the factors of each layer, as a peft adapter. One is zero at the start, so an
    untrained delta changes nothing; merges. Not for GPT-2's ``Conv1D``.

    Attributes:
        rank: rank of the second factor.
        alpha: numerator of the scale.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = "all"

    kind: ClassVar[str] = "lokr"
    lr: ClassVar[float] = 3e-3
    when: ClassVar[str] = "fewer bytes than LoRA at the same rank, for wide layers"

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"LoKr needs a rank of at least 1, not {self.rank}.")

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=target_names(model, blocks, self.targets, refuse_conv1d="lokr"),
        )
