"""Methods whose delta holds their parameters as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.model.tensors import TensorEntry, describe


class AttachedParameters(Attached):
    """A method whose delta holds its parameters as they are.

    Args:
        named: the parameters by their name in the delta; by default all that are trained, by
            their name in the model.
        subset: whether a delta may bring only some of them, those that changed.
        undo: takes the method's modules out again, or folds them in; None where there are none.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        named: Mapping[str, nn.Parameter] | None = None,
        *,
        subset: bool = False,
        undo: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(method, model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.named = dict(trained if named is None else named)
        self.subset, self.undo = subset, undo

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.named.items()}

    def expected(self, given: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        everything = describe(self.tensors())
        wanted = given if self.subset else everything
        return {name: everything[name] for name in wanted if name in everything}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in tensors.items():
                self.named[name].copy_(value)

    def detach(self) -> nn.Module:
        if self.undo is not None:
            self.undo()
        return self.model
