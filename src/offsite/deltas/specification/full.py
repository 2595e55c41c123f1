"""Whole adapter blocks, or a chosen part of them (Offsite-Tuning, arXiv 2302.04870)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.deltas.targets import part_of
from offsite.errors import OffsiteError
from offsite.model.blocks import freeze, get_blocks


@dataclass(frozen=True)
class Full(Method):
    """Tune every parameter of the adapter blocks, or of one part of each.

    The delta holds the new values of the tensors that changed. Starts at no change; merges exactly.

    Attributes:
        part: ``all``, or only ``attention``, ``mlp`` or ``norm``.
    """

    part: Literal["all", "attention", "mlp", "norm"] = "all"

    kind: ClassVar[str] = "full"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 3e-4
    when: ClassVar[str] = "the best quality, when the bytes of whole blocks do not matter"

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        freeze(model)
        chosen = 0
        for index in blocks:
            for name, parameter in get_blocks(model)[index].named_parameters():
                if self.part in ("all", part_of(name)):
                    parameter.requires_grad_(True)
                    chosen += 1
        if not chosen:
            raise OffsiteError(f"The adapter blocks have no part '{self.part}'; use part=all.")
        return AttachedParameters(self, model, subset=True)
