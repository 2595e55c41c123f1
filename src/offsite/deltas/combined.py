"""Several methods tuned together (combinations; Ding et al., arXiv 2203.06904)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.errors import OffsiteError, require
from offsite.model.tensors import TensorEntry

ORDER = ("", "prefix", "prompt", "weights", "bottleneck")  # a bottleneck sees the new weights


@dataclass(frozen=True)
class Combined(Method):
    """``methods`` side by side, all tuned at once: the paper's simultaneous combination.

    The delta holds what each would ship alone, under the same names. Starts at no change where all
    do; merges where all do, and is otherwise served with the merging ones folded. Any number of
    methods that tune disjoint parameters, but one of each kind that stays attached and one that
    recomputes weights (those through peft, masking, diff pruning, the intrinsic dimension). A
    bottleneck stands behind a layer's new weights. Each learns at its own default rate unless one
    is given for all. The paper's sequential combination, one method after the other, is not built.

    Attributes:
        methods: two or more, none of them twice, a combination, an intrinsic prompt or ``head``
            (a head is tuned with any method).

    Raises:
        OffsiteError: methods that cannot stand together; on attaching, methods that tune the same.
    """

    methods: tuple[Method, ...]

    kind: ClassVar[str] = "combined"
    place: ClassVar[str] = "everything"

    def __post_init__(self) -> None:
        require(
            len(self.methods) > 1, "A combination needs two methods or more, as in lora+bitfit."
        )
        require(
            len(set(self.methods)) == len(self.methods),
            "A combination names a method twice; name each once.",
        )
        taken: dict[str, str] = {}
        for method in self.methods:
            place = method.place
            require(
                place in ORDER and not method.side and method.kind != "head",
                f"The method '{method.kind}' cannot be part of a combination; use another, or tune "
                "it alone.",
            )
            require(
                place not in taken,
                f"The methods '{taken.get(place)}' and '{method.kind}' both need the model's "
                f"{place}, so they cannot be combined; tune one of them.",
            )
            if place:
                taken[place] = method.kind

    @property
    def merges(self) -> bool:
        return all(method.merges for method in self.methods)

    @property
    def lr(self) -> float:
        return max(method.lr for method in self.methods)

    @property
    def when(self) -> str:
        return " and ".join(method.when for method in self.methods)

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        parts: list[Attached] = []
        for method in sorted(self.methods, key=lambda m: ORDER.index(m.place)):
            part = method.attach(model, blocks)
            for other in parts:
                if {id(p) for p in part.parameters} & {id(p) for p in other.parameters}:
                    raise OffsiteError(
                        f"The methods '{other.method.kind}' and '{method.kind}' tune the same "
                        "parameters of the adapter blocks; choose parts that differ, or one of "
                        "them."
                    )
            parts.append(part)
        for part in parts:
            for parameter in part.parameters:
                parameter.requires_grad_(True)
        return AttachedTogether(self, model, parts)


class AttachedTogether(Attached):
    """Several methods at work in one model."""

    def __init__(self, method: Method, model: nn.Module, parts: Sequence[Attached]) -> None:
        super().__init__(method, model)
        self.parts = tuple(parts)

    @property
    def rates(self) -> list[tuple[Sequence[nn.Parameter], float]]:
        return [rate for part in self.parts for rate in part.rates]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {n: value for part in self.parts for n, value in part.tensors().items()}

    def expected(self, given: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        return {n: e for part in self.parts for n, e in part.expected(given).items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for part in self.parts:
            part.load(own_of(part, tensors))

    def detach(self) -> nn.Module:
        for part in reversed(self.parts):
            part.detach()
        return self.model

    def divide(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> list[tuple[Method, dict[str, torch.Tensor]]]:
        return [(part.method, own_of(part, tensors)) for part in self.parts]


def own_of(part: Attached, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors of a combination that belong to one part of it."""
    return {name: tensors[name] for name in part.tensors() if name in tensors}


def combine(methods: Sequence[Method]) -> Method:
    """The one method of a list, or the combination of several."""
    return methods[0] if len(methods) == 1 else Combined(tuple(methods))
