"""Low-rank updates through peft (LoRA; Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, fan_in_fan_out, target_names
from offsite.errors import require
from offsite.model.layers import LowRankLinear, QuantisedLinear
from offsite.model.split import Kept


@dataclass(frozen=True)
class LoRA(ThroughPeft):
    """``W + (alpha / rank) B A`` on the linear layers of the adapter blocks.

    The delta holds ``A`` (rank, inputs) and ``B`` (outputs, rank), as a peft adapter; with DoRA
    (arXiv 2402.09353) also a magnitude (outputs,). ``B`` is zero at the start, so an untrained
    delta changes nothing (DoRA: to rounding). Merges. Without DoRA it may tune all blocks of an
    emulator (``reach="all"``), low-rank and quantised layers too.

    Attributes:
        rank: rank of the update.
        alpha: numerator of the scale.
        dropout: on the input of ``A`` while training.
        dora: learn the norm of each output's weights apart from their direction.
        rslora: scale by ``alpha / sqrt(rank)`` (arXiv 2312.03732), for large ranks.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    targets: str = "all"

    kind: ClassVar[str] = "lora"
    lr: ClassVar[float] = 1e-3
    when: ClassVar[str] = "the usual choice: small, trains well on every family, opens in peft"

    @property
    def reaches(self) -> bool:
        return not self.dora

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"LoRA needs a rank of at least 1, not {self.rank}.")
        require(
            0 <= self.dropout < 1,
            f"A dropout of {self.dropout} is not usable; use 0 or more and less than 1.",
        )

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import LoraConfig
        from peft.tuners.lora import Linear

        names = target_names(model, blocks, self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            use_rslora=self.rslora,
            target_modules=names,
            fan_in_fan_out=fan_in_fan_out(model, names),
        )
        config._register_custom_module({LowRankLinear: Linear, QuantisedLinear: Linear})
        return config


def cuts(
    names: Iterable[str], kept: Mapping[str, Kept], path: str
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Of the factors on narrowed layers: the axis that is shorter, and the indices it has kept.

    Args:
        names: of the tensors of a LoRA delta, blocks counted as in ``kept``.
        kept: what is left of each narrowed layer, by ``position.name``.
        path: of the model's list of blocks.
    """
    found = {}
    for name in names:
        layer, _, factor = name.partition(".lora_")
        left = kept.get(layer.partition(f"{path}.")[2], Kept())
        axis, indices = (1, left.columns) if factor.startswith("A") else (0, left.rows)
        if indices is not None:
            found[name] = (axis, indices)
    return found
