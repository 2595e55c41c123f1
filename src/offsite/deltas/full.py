"""Whole adapter blocks, or a chosen part of them (Offsite-Tuning, arXiv 2302.04870)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from offsite.blocks import freeze, get_blocks
from offsite.deltas.targets import part_of
from offsite.errors import OffsiteError
from offsite.tensors import TensorEntry, describe


@dataclass(frozen=True)
class Full:
    """Tune every parameter of the adapter blocks, or of one part of each.

    What travels: the new values of the tensors that changed. Starts at no change; merges exactly.

    Attributes:
        part: ``all``, or only ``attention``, ``mlp`` or ``norm``.
    """

    part: Literal["all", "attention", "mlp", "norm"] = "all"

    kind: ClassVar[str] = "full"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-3
    when: ClassVar[str] = "the best quality, when the bytes of whole blocks do not matter"

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
        copy_into(model, tensors)

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def peft_config(self, model: nn.Module) -> str | None:
        return None


def copy_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Set parameters of a model by name."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
