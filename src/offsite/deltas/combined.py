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
    """Tune several methods at once: the paper's simultaneous combination.

    The delta holds the tensors of each method, under the same names. It starts at no change and
    merges if all its methods do. The methods must tune different parameters. At most one may
    recompute weights (those of peft, masking, diff pruning, intrinsic dimension), and at most one
    of each kind may stay attached. A bottleneck is applied to the output of a layer's new weights.
    Each method has its own default learning rate unless one is given for all. We do not have the
    paper's sequential combination.

    Attributes:
        methods: two or more, none of them twice, a combination, an intrinsic prompt or ``head``
            (a head is tuned with any method).

    Raises:
        OffsiteError: methods that cannot be combined; on attaching, methods that tune the same.
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
