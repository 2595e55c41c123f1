"""What methods have in common whose parameters travel as they are: everything but where they go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from offsite.deltas.method import Method, cannot_merge
from offsite.model.tensors import TensorEntry, describe


class OwnNumbers:
    """The half of :class:`~offsite.deltas.method.Method` around :meth:`numbers`.

    A method that merges has changed the weights themselves, so merging it is doing nothing.

    Attributes:
        subset: whether a delta may bring only some of the numbers, those that changed.
    """

    place: ClassVar[str] = ""
    merges: ClassVar[bool] = False
    reaches: ClassVar[bool] = False
    subset: ClassVar[bool] = False

    def numbers(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What is tuned, by the name it travels under: here, all that requires gradients."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.numbers(model).items()}

    def expected(
        self, model: nn.Module, given: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        everything = describe(self.tensors(model))
        wanted = given if self.subset else everything
        return {name: everything[name] for name in wanted if name in everything}

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        numbers = self.numbers(model)
        with torch.no_grad():
            for name, value in tensors.items():
                numbers[name].copy_(value)

    def merge(self: Method, model: nn.Module) -> nn.Module:
        if not self.merges:
            raise cannot_merge(self)
        return model

    def peft_config(self, model: nn.Module) -> str | None:
        return None


def under(model: nn.Module, place: str) -> dict[str, nn.Parameter]:
    """The parameters of every module called ``place``."""
    return {name: p for name, p in model.named_parameters() if f".{place}." in name}
