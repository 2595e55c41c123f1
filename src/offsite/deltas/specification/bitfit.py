"""Only the biases of the adapter blocks (BitFit; Ben Zaken et al., arXiv 2106.10199)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.errors import OffsiteError
from offsite.model.blocks import freeze, get_blocks


@dataclass(frozen=True)
class BitFit(Method):
    """Tune every bias of the adapter blocks, those of norms included, and nothing else.

    The delta holds the new biases. Starts at no change; merges exactly. The paper tunes the biases
    of all blocks and the task's head; here only those of the adapter.
    """

    kind: ClassVar[str] = "bitfit"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "a few kilobytes on models that have biases (GPT-2, OPT, BLOOM, ViT)"

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
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
        return AttachedParameters(self, model, subset=True)
