"""Several methods tuned together (combinations; Ding et al., arXiv 2203.06904)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.codec import require
from offsite.deltas.method import Method, cannot_merge
from offsite.deltas.specification.own_numbers import OwnNumbers
from offsite.errors import OffsiteError
from offsite.model.tensors import TensorEntry, describe

ORDER = ("", "prefix", "prompt", "weights", "bottleneck")  # a bottleneck sees the new weights


@dataclass(frozen=True)
class Part:
    """One method at work in a model that carries several.

    Attributes:
        runner: what its ``attach`` returned.
        names: of what travels; peft would count what later methods put into its layers as its own.
        numbers: by the name they travel under, as they were called when it was attached; None for a
            method that travels in another form.
        trained: what it tunes.
    """

    method: Method
    runner: nn.Module
    names: tuple[str, ...]
    numbers: dict[str, nn.Parameter] | None
    trained: tuple[nn.Parameter, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What travels of it."""
        if self.numbers is None:
            found = self.method.tensors(self.runner)
            return {name: found[name] for name in self.names}
        return {name: number.detach() for name, number in self.numbers.items()}

    def expected(self, given: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        """What may travel of it; see :meth:`Method.expected`."""
        whole = not getattr(self.method, "subset", False)
        return {n: e for n, e in describe(self.tensors()).items() if whole or n in given}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set its numbers."""
        if self.numbers is None:
            return self.method.load(self.runner, tensors)
        with torch.no_grad():
            for name, value in tensors.items():
                self.numbers[name].copy_(value)


@dataclass(frozen=True)
class Combined:
    """``methods`` side by side, all tuned at once: the paper's simultaneous combination.

    What travels: what each would ship alone, under the same names. Starts at no change where all
    do; merges where all do, and is otherwise served with the merging ones folded. Any number of
    methods that tune disjoint numbers, but one of each kind that stays attached and one that
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
    reaches: ClassVar[bool] = False

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
                place in ORDER and method.kind not in ("intrinsic_prompt", "head"),
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

    def attach(self, model: Any, blocks: Sequence[int]) -> nn.Module:
        parts: list[Part] = []
        for method in sorted(self.methods, key=lambda m: ORDER.index(m.place)):
            runner = method.attach(model, blocks)
            trained = tuple(p for p in runner.parameters() if p.requires_grad)
            own = dict(method.numbers(runner)) if isinstance(method, OwnNumbers) else None
            for other in parts:
                if {id(p) for p in trained} & {id(p) for p in other.trained}:
                    raise OffsiteError(
                        f"The methods '{other.method.kind}' and '{method.kind}' tune the same "
                        "numbers of the adapter blocks; choose parts that differ, or one of them."
                    )
            parts.append(Part(method, runner, tuple(method.tensors(runner)), own, trained))
        for part in parts:
            for parameter in part.trained:
                parameter.requires_grad_(True)
        model.combined = parts
        return model  # type: ignore[no-any-return]

    def rates(self, model: Any) -> list[tuple[Sequence[nn.Parameter], float]]:
        """What each method tunes, and the rate it learns at."""
        return [(part.trained, part.method.lr) for part in model.combined]

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        return {n: value for part in model.combined for n, value in part.tensors().items()}

    def expected(self, model: Any, given: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        return {n: e for part in model.combined for n, e in part.expected(given).items()}

    def load(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        for part, own in divide(model, tensors):
            part.load(own)

    def merge(self, model: Any) -> nn.Module:
        if not self.merges:
            raise cannot_merge(self)
        for part in model.combined:
            part.method.merge(part.runner)
        del model.combined
        return model  # type: ignore[no-any-return]

    def peft_config(self, model: nn.Module) -> str | None:
        return None


def divide(
    model: Any, tensors: Mapping[str, torch.Tensor]
) -> list[tuple[Part, dict[str, torch.Tensor]]]:
    """Which tensors of a combination belong to which part; ``model`` has it attached."""
    return [
        (part, {name: tensors[name] for name in part.names if name in tensors})
        for part in model.combined
    ]


def combine(methods: Sequence[Method]) -> Method:
    """The one method of a list, or the combination of several."""
    return methods[0] if len(methods) == 1 else Combined(tuple(methods))
