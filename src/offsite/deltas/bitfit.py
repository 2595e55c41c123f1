"""Only the biases of the adapter blocks (BitFit; Ben Zaken et al., arXiv 2106.10199)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.blocks import freeze, get_blocks
from offsite.deltas.full import copy_into
from offsite.errors import OffsiteError
from offsite.tensors import TensorEntry, describe


@dataclass(frozen=True)
class BitFit:
    """Tune every bias of the adapter blocks, those of norms included, and nothing else.

    What travels: the new biases. Starts at no change; merges exactly. The paper tunes the biases
    of all blocks and the task's head; here only those of the adapter.
    """

    kind: ClassVar[str] = "bitfit"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "a few kilobytes on models that have biases (GPT-2, OPT, BLOOM, ViT)"

    def attach(self, model: nn.Module, blocks: Sequence[int]) -> nn.Module:
        freeze(model)
        biases = [
            parameter
            for index in blocks
            for name, parameter in get_blocks(model)[index].named_parameters()
            if name.rsplit(".", 1)[-1] == "bias"
        ]
        if not biases:
            raise OffsiteError(
                f"The adapter blocks of this {type(model).__name__} have no biases, so bitfit has "
                "nothing to tune; use lora (LoRA(rank=1) is about as small)."
            )
        for bias in biases:
            bias.requires_grad_(True)
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
