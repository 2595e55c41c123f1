"""Deltas on the full model: kept as folders, attached, switched and added without reloading it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from offsite.blocks import assemble, block_path, get_blocks, rename_blocks
from offsite.config import require, to_json
from offsite.delta import PEFT_CONFIG, PEFT_WEIGHTS, Delta, new_delta
from offsite.deltas import Full, parse_method
from offsite.deltas.method import Attached, Method, check_entries
from offsite.errors import OffsiteError
from offsite.files import new_folder, read_json, write_file
from offsite.manifest import Sha256
from offsite.offer import Offer
from offsite.owner import attach_delta
from offsite.record import Record
from offsite.stored import model_fingerprint
from offsite.tensors import TensorEntry, describe, load_tensors, parse, save_tensors

MANIFEST, WEIGHTS = "plugged.json", "plugged.safetensors"


class PluggedManifest(BaseModel):
    """What ``plugged.json`` says: which model, which blocks of it, which method, which tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["plugged"] = "plugged"
    schema_version: Literal[1] = 1
    fingerprint: Sha256
    method: dict[str, Any]
    adapter: tuple[int, ...]
    tensors: dict[str, TensorEntry]


@dataclass(frozen=True)
class Plugged:
    """A delta in its place in the full model: tensors under the full model's names.

    Attributes:
        method: how it was tuned.
        adapter: positions of its blocks in the full model.
        tensors: its numbers.
        fingerprint: of the full model.
        peft_config: the text of ``adapter_config.json`` where peft has the method.
    """

    method: Method
    adapter: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    fingerprint: str
    peft_config: str | None = None

    def save(self, folder: str | Path) -> None:
        """Write a folder for :func:`load_plugged`; where peft has the method, peft opens it too.

        Raises:
            OffsiteError: the folder exists.
        """
        with new_folder(folder) as partial:
            save_tensors(self.tensors, partial / (PEFT_WEIGHTS if self.peft_config else WEIGHTS))
            if self.peft_config:
                write_file(partial / PEFT_CONFIG, self.peft_config)
            manifest = PluggedManifest(
                fingerprint=self.fingerprint,
                method=to_json(self.method),
                adapter=self.adapter,
                tensors=describe(self.tensors),
            )
            write_file(partial / MANIFEST, manifest.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Plugged:
        """Read a folder that :meth:`save` wrote.

        Raises:
            OffsiteError: no such folder, or tensors other than it declares.
        """
        folder = Path(folder)
        require(
            (folder / MANIFEST).is_file(),
            f"'{folder}' has no {MANIFEST}; make one with: offsite plug --as-adapter.",
        )
        path = folder / MANIFEST
        manifest: PluggedManifest = parse(PluggedManifest, read_json(path), path)
        tensors = load_tensors(sorted(folder.glob("*.safetensors")), manifest.tensors)
        config = folder / PEFT_CONFIG
        return cls(
            parse_method(manifest.method),
            manifest.adapter,
            tensors,
            manifest.fingerprint,
            config.read_text(encoding="utf-8") if config.is_file() else None,
        )


def place(model: str | Path | nn.Module, delta: Delta, record: Record) -> Plugged:
    """Check a delta like :func:`offsite.owner.plug` and keep it apart from the model.

    Raises:
        OffsiteError: see :func:`offsite.owner.plug`.
    """
    runner, method, _ = attach_delta(model, delta, record)
    entry = record.find(delta.manifest.parent)
    mapping = dict(zip(entry.emulator_adapter, entry.adapter, strict=True))
    tensors = rename_blocks(delta.values(), record.block_path, mapping)
    return Plugged(method, entry.adapter, tensors, record.fingerprint, method.peft_config(runner))


def load_plugged(model: nn.Module, folder: str | Path) -> nn.Module:
    """Attach a saved delta to the full model it was made for, in place, and return what to run.

    Where the method merges, its numbers are folded into the weights.

    Raises:
        OffsiteError: another model, or tensors that do not fit it.
    """
    served = Served(model)
    served.add("delta", Plugged.load(folder))
    return served.switch("delta")


def merged_tensors(
    model: nn.Module, method: Method, adapter: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What a merging delta makes of a model: new values (float32) of the parameters it changes.

    ``model`` stays as it is.

    Raises:
        OffsiteError: a method that does not merge, or tensors that do not fit.
    """
    original = get_blocks(model)
    blocks = [copy.deepcopy(b).float() if i in adapter else b for i, b in enumerate(original)]
    shell = assemble(model, blocks, range(len(blocks)))
    runner = method.attach(shell, adapter).eval()
    given = describe(tensors)
    check_entries(given, method.expected(runner, given))
    method.load(runner, tensors)
    merged, path = get_blocks(method.merge(runner)), block_path(model)
    return {
        f"{path}.{index}.{name}": value.detach()
        for index in adapter
        for name, value in merged[index].named_parameters()
        if not torch.equal(value, original[index].get_parameter(name).float())
    }


def to_tensors(delta: Delta, offer: Offer) -> Delta:
    """The same change as a plain delta of method ``full``: new values of the tensors it changes.

    Raises:
        OffsiteError: another offer, or a method that does not merge.
    """
    require(
        delta.manifest.parent == offer.manifest.id,
        "The delta answers another offer; give the offer that it was tuned on.",
    )
    method, adapter = parse_method(delta.manifest.method), offer.manifest.adapter
    values = merged_tensors(offer.model, method, adapter, delta.values())
    own = dict(offer.model.named_parameters())
    plain = {name: value.to(own[name].dtype) for name, value in values.items()}
    return new_delta(offer.manifest, plain, to_json(Full()))


class Served:
    """One full model in memory and any number of deltas to run on it.

    Merging deltas may be added up with weights: ``base + sum of weight * (tuned - base)``, computed
    in float32. Methods that stay attached stack with them and with each other, one of each kind and
    at weight 1. Switching changes the model in place and costs a copy of the adapter blocks; with
    nothing active the weights are bit-equal to the original. Not safe while a forward runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.requires_grad_(False).eval()
        self.fingerprint = model_fingerprint(model)
        self.deltas: dict[str, Plugged] = {}
        self.values: dict[str, dict[str, torch.Tensor]] = {}
        self.base: dict[str, torch.Tensor] = {}
        self.active: dict[str, float] = {}

    def add(self, name: str, delta: Plugged) -> None:
        """Make a delta available under ``name``; nothing is switched.

        Raises:
            OffsiteError: a name in use, another model, or tensors that do not fit.
        """
        require(name not in self.deltas, f"There is a delta '{name}' already; remove it first.")
        require(
            delta.fingerprint == self.fingerprint,
            f"The delta '{name}' was plugged into other weights than this model's; plug it anew.",
        )
        active = self.active
        self.switch()
        try:
            if delta.method.merges:
                args = (delta.method, delta.adapter, delta.tensors)
                self.values[name] = merged_tensors(self.model, *args)
                for key in self.values[name].keys() - self.base.keys():
                    self.base[key] = self.model.get_parameter(key).detach().clone()
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
        del self.deltas[name]
        self.values.pop(name, None)

    def switch(self, *names: str, **weights: float) -> nn.Module:
        """Run exactly these deltas from now on: names at weight 1, others as ``name=weight``.

        Raises:
            OffsiteError: an unknown name, two deltas that cannot stack, or a weight that a method
                cannot have. The model is then as it was.
        """
        wanted = {**dict.fromkeys(names, 1.0), **weights}
        self.check(wanted)
        for name in self.active:
            if not self.deltas[name].method.merges:
                cast(Attached, self.deltas[name].method).detach(self.model)
        with torch.no_grad():
            for key in self.base:
                self.model.get_parameter(key).copy_(self.combined(key, wanted))
        for name in wanted:
            method = self.deltas[name].method
            if not method.merges:
                method.attach(self.model, self.deltas[name].adapter)
                method.load(self.model, self.deltas[name].tensors)
                self.model.requires_grad_(False)
        self.active = wanted
        return self.model

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
            method = self.deltas[name].method
            if method.merges:
                continue
            require(
                weight == 1,
                f"The delta '{name}' ({method.kind}) is attached as it is, so it takes no weight "
                f"but 1, not {weight}; only deltas that merge can be weighted.",
            )
            place = cast(Attached, method).place
            if place in places:
                raise OffsiteError(
                    f"The deltas '{places[place]}' and '{name}' both need the model's {place}; "
                    "switch to one of them, or tune one with a method that merges."
                )
            places[place] = name
