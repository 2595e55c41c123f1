"""Hadamard products of low-rank updates through peft (LoHa; FedPara, arXiv 2108.06098)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, target_names
from offsite.errors import require


@dataclass(frozen=True)
class LoHa(ThroughPeft):
    """``W + (alpha / rank) (B1 A1) * (B2 A2)``, elementwise: rank up to ``rank`` squared.

    The delta holds the four factors of each layer, as a peft adapter. One starts at zero, so an
    untrained delta changes nothing; merges. Not for GPT-2's ``Conv1D``.

    Attributes:
        rank: rank of each of the two products.
        alpha: numerator of the scale.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = "all"

    kind: ClassVar[str] = "loha"
    lr: ClassVar[float] = 3e-3
    when: ClassVar[str] = "an update of higher rank than LoRA's at twice its bytes"

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"LoHa needs a rank of at least 1, not {self.rank}.")

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=target_names(model, blocks, self.targets, refuse_conv1d="loha"),
        )
