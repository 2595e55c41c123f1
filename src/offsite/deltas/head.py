"""The classifier head alone: the baseline that any tuning of blocks must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.blocks import freeze
from offsite.errors import OffsiteError
from offsite.heads import head_path
from offsite.tensors import TensorEntry


@dataclass(frozen=True)
class Head:
    """Tune no block at all; what travels is the head, which goes with every delta of an image task.

    Raises:
        OffsiteError: on attaching to a model without a classifier head.
    """

    kind: ClassVar[str] = "head"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "image tasks: the baseline that tuning any block must beat"

    def attach(self, model: nn.Module, blocks: Sequence[int]) -> nn.Module:
        if head_path(model) is None:
            raise OffsiteError(
                "The method 'head' tunes a classifier head, which this model lacks; it is for "
                "image classification."
            )
        freeze(model)
        return model

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {}

    def expected(
        self, model: nn.Module, given: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        return {}

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        return None

    def merge(self, model: nn.Module) -> nn.Module:
        return model

    def peft_config(self, model: nn.Module) -> str | None:
        return None
