"""The classifier head alone: the baseline that any tuning of blocks must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.errors import OffsiteError
from offsite.model.blocks import freeze
from offsite.model.heads import head_path


@dataclass(frozen=True)
class Head(Method):
    """Tune no block. The delta holds the head, as every delta of an image task does.

    Its learning rate is ``TrainOptions.head_lr``, as with any other method.

    Raises:
        OffsiteError: on attaching to a model without a classifier head.
    """

    kind: ClassVar[str] = "head"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "image tasks: the baseline that tuning any block must beat"

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        if head_path(model) is None:
            raise OffsiteError(
                "The method 'head' tunes a classifier head, which this model lacks; it is for "
                "image classification."
            )
        freeze(model)
        return AttachedParameters(self, model)
