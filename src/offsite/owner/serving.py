"""Several deltas on one full model in memory: attach, switch and add them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from offsite.deltas.combined import combine
from offsite.deltas.merging import merged_tensors
from offsite.deltas.method import Attached, Method
from offsite.errors import OffsiteError, require
from offsite.exchange.contract import check_entries
from offsite.model.blocks import get_blocks, with_own_blocks
from offsite.model.heads import (
    attach_head,
    check_head,
    head_entries,
    head_path,
    head_tensors,
    labels_of,
    load_head,
    name_classes,
)
from offsite.model.stored import model_fingerprint
from offsite.model.tensors import describe
from offsite.owner.plugged import Plugged


def load_plugged(model: nn.Module, folder: str | Path) -> nn.Module:
    """Attach a saved delta to the full model it was made for, in place, and return what to run.

    Where the method merges, it is folded into the weights.

    Raises:
        OffsiteError: another model, or tensors that do not fit it.
    """
    served = Served(model)
    served.add("delta", folder)
    return served.switch("delta")


def divided(model: nn.Module, delta: Plugged) -> list[tuple[Method, dict[str, torch.Tensor]]]:
    """The methods of a delta, each with its tensors; ``model`` stays as it is.

    Raises:
        OffsiteError: tensors that the methods would not take in their place.
    """
    attached = delta.method.attach(with_own_blocks(model, delta.adapter), delta.adapter)
    given = describe(delta.own)
    check_entries(given, attached.expected(given))
    return attached.divide(delta.own)


class Served:
    """One full model in memory and any number of deltas to run on it.

    Deltas that merge are added with weights: ``base + sum of weight * (tuned - base)``, computed in
    float32. Methods that stay attached may be active too, one of each kind, at weight 1. Of a
    combination, the part that merges is added and the rest is attached. Only one active delta may
    have a classifier head, at weight 1; the model then has its classes. Switching changes the model
    in place and costs a copy of the adapter blocks. With no active delta the weights are bit-equal
    to the original. Do not switch while a forward pass runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.requires_grad_(False).eval()
        self.fingerprint = model_fingerprint(model)
        self.deltas: dict[str, Plugged] = {}
        self.values: dict[str, dict[str, torch.Tensor]] = {}
        self.modules: dict[str, list[tuple[Method, dict[str, torch.Tensor]]]] = {}
        self.attached: list[Attached] = []
        self.base: dict[str, torch.Tensor] = {}
        self.active: dict[str, float] = {}
        self.head_path, self.labels = head_path(model), labels_of(model)
        self.head = model.get_submodule(self.head_path) if self.head_path else None

    def add(self, name: str, delta: Plugged | str | Path) -> None:
        """Make a delta available under ``name``; nothing is switched.

        Args:
            delta: as placed in this model, or the folder of ``offsite plug --as-adapter``.

        Raises:
            OffsiteError: a name in use, another model, or tensors that do not fit.
        """
        require(name not in self.deltas, f"There is a delta '{name}' already; remove it first.")
        delta = delta if isinstance(delta, Plugged) else Plugged.load(delta)
        require(
            delta.fingerprint == self.fingerprint,
            f"The delta '{name}' was plugged into other weights than this model's; plug it again.",
        )
        total = len(get_blocks(self.model))
        fits = all(0 <= position < total for position in delta.adapter)
        require(
            fits,
            f"The delta '{name}' tunes blocks that a model of {total} does not have; plug it "
            "again.",
        )
        active = self.active
        self.switch()
        try:
            head = describe(delta.head_values)
            check_entries(head, check_head(head, delta.labels, head_entries(self.model)))
            parts = divided(self.model, delta)
            if folded := [method for method, _ in parts if method.merges]:
                own = {n: t for m, tensors in parts if m.merges for n, t in tensors.items()}
                values = merged_tensors(self.model, combine(folded), delta.adapter, own)
                for key in values.keys() - self.base.keys():
                    self.base[key] = self.model.get_parameter(key).detach().clone()
                self.values[name] = values
            self.modules[name] = [(m, own) for m, own in parts if not m.merges]
            self.deltas[name] = delta
        finally:
            self.switch(**active)

    def remove(self, name: str) -> None:
        """Forget a delta, switching it off first.

        Raises:
            OffsiteError: no such delta.
        """
        self.check({name: 1.0})
        self.switch(**{key: weight for key, weight in self.active.items() if key != name})
        del self.deltas[name], self.modules[name]
        self.values.pop(name, None)
        needed = {key for values in self.values.values() for key in values}
        self.base = {key: value for key, value in self.base.items() if key in needed}

    def switch(self, /, *names: str, **weights: float) -> nn.Module:
        """Activate exactly these deltas: names at weight 1, or ``name=weight``.

        Raises:
            OffsiteError: an unknown name, two deltas that cannot stack, or a weight that a method
                cannot have. The model is then as it was.
        """
        wanted = {**dict.fromkeys(names, 1.0), **weights}
        self.check(wanted)
        for attached in reversed(self.attached):
            attached.detach()
        self.attached = []
        with torch.no_grad():
            for key in self.base:
                self.model.get_parameter(key).copy_(self.combined(key, wanted))
        for name in wanted:
            for method, tensors in self.modules[name]:
                attached = method.attach(self.model, self.deltas[name].adapter)
                attached.load(tensors)
                self.attached.append(attached)
        self.show_head([self.deltas[name] for name in wanted if self.deltas[name].head])
        self.model.requires_grad_(False)
        self.active = wanted
        return self.model

    def show_head(self, bearers: Sequence[Plugged]) -> None:
        """Give the model the classifier head of the one delta that brings one, else its own."""
        if self.head_path is None or self.head is None:
            return
        self.model.set_submodule(self.head_path, self.head)
        name_classes(self.model, self.labels)
        for delta in bearers:
            attach_head(self.model, delta.labels)
            load_head(head_tensors(self.model), delta.head_values)

    def combined(self, key: str, wanted: Mapping[str, float]) -> torch.Tensor:
        """The value of one parameter under some deltas; exact for one delta at weight 1."""
        parts = [
            (w, self.values[n][key]) for n, w in wanted.items() if key in self.values.get(n, {})
        ]
        base = self.base[key]
        if len(parts) == 1 and parts[0][0] == 1:
            return parts[0][1].to(base.dtype)
        total = base.float()
        for weight, value in parts:
            total = total + weight * (value - base.float())
        return total.to(base.dtype)

    def check(self, wanted: Mapping[str, float]) -> None:
        """Refuse unknown names and combinations that cannot stack."""
        places: dict[str, str] = {}
        for name, weight in wanted.items():
            if name not in self.deltas:
                known = ", ".join(sorted(self.deltas)) or "none so far"
                raise OffsiteError(f"There is no delta '{name}' here; there are: {known}.")
            delta = self.deltas[name]
            require(
                isinstance(weight, (int, float)) and math.isfinite(weight),
                f"The weight of the delta '{name}' must be a finite number, such as 0.5.",
            )
            needs = ["classifier head"] if delta.head else []
            needs += [method.place for method, _ in self.modules[name]]
            require(
                weight == 1 or not needs,
                f"The weight of the delta '{name}' must be 1, not {weight}: it brings a "
                f"{' and a '.join(needs)}, and only deltas that merge can be weighted.",
            )
            for place in needs:
                if place in places:
                    raise OffsiteError(
                        f"The deltas '{places[place]}' and '{name}' both need the model's "
                        f"{place}, so they cannot be active together; switch to one of them."
                    )
                places[place] = name
