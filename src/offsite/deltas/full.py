"""Whole adapter blocks, or a chosen part of them (Offsite-Tuning, arXiv 2302.04870)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from offsite.blocks import freeze, get_blocks
from offsite.errors import OffsiteError
from offsite.tensors import TensorEntry, describe


def part_of(name: str) -> str:
    """The part of a block a parameter belongs to: ``attention``, ``mlp`` or ``norm``.

    Judged by the family's own names: ``norm`` or ``ln`` in the module's name is a norm, ``attn`` or
    ``attention`` above it is attention, and the rest of a block is its feed-forward.
    """
    names = name.split(".")[:-1]
    last = names[-1].lower() if names else ""
    if "norm" in last or last.startswith("ln") or "scale" in last:
        return "norm"
    if any("attn" in part or "attention" in part for part in names):
        return "attention"
    return "mlp"


@dataclass(frozen=True)
class Full:
    """Tune every parameter of the adapter blocks, or of one part of each.

    What travels: the new values of the tensors that changed. Starts at no change; merges exactly.
    """

    part: Literal["all", "attention", "mlp", "norm"] = "all"

    kind: ClassVar[str] = "full"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-3

    def attach(self, model: nn.Module, blocks: Sequence[int]) -> nn.Module:
        freeze(model)
        chosen = 0
        for index in blocks:
            for name, parameter in get_blocks(model)[index].named_parameters():
                if self.part in ("all", part_of(name)):
                    parameter.requires_grad_(True)
                    chosen += 1
        if not chosen:
            raise OffsiteError(f"The adapter blocks have no part '{self.part}'; use part=all.")
        return model

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def expected(
        self, model: nn.Module, given: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        everything = describe(self.tensors(model))
        return {name: everything[name] for name in given if name in everything}

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def peft_config(self, model: nn.Module) -> str | None:
        return None
