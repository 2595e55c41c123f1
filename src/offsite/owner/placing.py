"""Check a delta against its contract and attach it to the full model, unmerged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.deltas import parse_method
from offsite.deltas.method import Attached, Method
from offsite.deltas.reparameterisation.lora import cuts
from offsite.errors import OffsiteError
from offsite.exchange.contract import check_contract, check_entries, check_norm, check_side
from offsite.exchange.delta import Delta
from offsite.exchange.offer_record import OfferRecord
from offsite.exchange.record import Record
from offsite.exchange.side import GivenSides, attach_side, divide, read_sides, sides_of
from offsite.model.blocks import get_blocks, rename_blocks, with_own_blocks
from offsite.model.checkpoint import build_skeleton, load_model
from offsite.model.heads import attach_head, head_tensors, load_head
from offsite.model.stored import model_fingerprint
from offsite.model.tensors import TensorEntry
from offsite.owner.reach import Cuts, narrowed, widened


@dataclass(frozen=True)
class Placed:
    """A delta attached, unmerged, to a copy of the full model's blocks that it tunes.

    Attributes:
        attached: the delta in the copy; ``full`` is the untouched model.
        blocks: positions of the tuned blocks in the full model, ascending.
        tensors: the delta's tensors in the names and sizes of the full model, with its head.
    """

    attached: Attached
    full: nn.Module
    blocks: tuple[int, ...]
    tensors: dict[str, torch.Tensor]

    def tuned(self) -> nn.Module:
        """The tuned model in the full model's dtype: merged, or with its modules attached.

        The copy becomes that model, so this is called last.
        """
        merges = self.attached.method.merges
        tuned = self.attached.merge() if merges else self.attached.model
        dtype = next(self.full.parameters()).dtype
        for index in self.blocks:
            get_blocks(tuned)[index].to(dtype)
        return tuned.eval()


@dataclass(frozen=True)
class Route:
    """Where a delta's tensors go: from the emulator's blocks to those of the full model.

    Attributes:
        path: the module that holds the blocks.
        mapping: for each block of the emulator that the delta tunes, that of the full model.
        declared: the delta's own tensors, by their names in the full model.
        narrow: what is left of the layers that the recipe made narrower.
    """

    path: str
    mapping: dict[int, int]
    declared: dict[str, TensorEntry]
    narrow: Cuts

    @classmethod
    def of(cls, delta: Delta, entry: OfferRecord, path: str) -> Route:
        """The route of a delta that holds its contract; none of its tensors is read.

        Raises:
            OffsiteError: a tensor of a block that the offer does not let it tune.
        """
        mapping = entry.tuned(delta.manifest.reach)
        own = divide(delta.manifest.tensors, delta.manifest.head)[0]
        declared = rename_blocks(own, path, mapping)
        return cls(path, mapping, declared, cuts(declared, entry.kept, path))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Positions of the tuned blocks in the full model."""
        return tuple(self.mapping.values())

    def attach(self, method: Method, model: nn.Module) -> tuple[Attached, dict[str, TensorEntry]]:
        """Attach a method at the end of the route; returns with it the tensors that fit there.

        Raises:
            OffsiteError: the delta declares others, or the method cannot tune these blocks.
        """
        attached = method.attach(model, self.blocks)
        expected = attached.expected(self.declared)
        check_entries(self.declared, narrowed(expected, self.narrow))
        return attached, expected

    def move(
        self, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, TensorEntry]
    ) -> dict[str, torch.Tensor]:
        """The delta's own tensors in the names and sizes of the full model."""
        return widened(rename_blocks(tensors, self.path, self.mapping), expected, self.narrow)


def attach_delta(
    model: str | Path | nn.Module, delta: Delta, record: Record, side: GivenSides | None = None
) -> Placed:
    """Check a delta and attach it, unmerged, to a copy of the full model's blocks that it tunes.

    Its tensors are read only after everything that it declares was checked.

    Raises:
        OffsiteError: another model or offer, or a delta that breaks the return contract.
    """
    full, entry = full_model(model, record), record.find(delta.manifest.parent)
    check_contract(delta, entry)
    method = method_of(delta)
    route = Route.of(delta, entry, record.block_path)
    own = with_own_blocks(full, route.blocks)
    for group in read_sides(side or {}):
        attach_side(own, group)
    if method.side:
        check_side(own, method.side, entry)
    attached, expected = attach(method, own, delta, route, record.auto_class)
    values = delta.values()
    check_norm(values, entry.contract)
    tensors, head = divide(values, delta.manifest.head)
    tensors = route.move(tensors, expected)
    attached.load(tensors)
    load_head(head_tensors(own), head)
    attached.model.requires_grad_(False).eval()
    return Placed(attached, full, route.blocks, tensors | head)


def full_model(model: str | Path | nn.Module, record: Record) -> nn.Module:
    """The full model, in memory, if it is the one that the record was made for.

    Raises:
        OffsiteError: another model.
    """
    found: Any = load_model(model, record.auto_class) if isinstance(model, (str, Path)) else model
    if model_fingerprint(found) != record.fingerprint:
        raise OffsiteError(
            f"The record was made for another model ('{record.model_name}'); plug the delta into "
            "exactly the weights that the offer was cut from."
        )
    return found  # type: ignore[no-any-return]


def method_of(delta: Delta) -> Method:
    """The method that a delta was tuned with.

    Raises:
        OffsiteError: an unknown method, or one that cannot tune the blocks that the delta tunes.
    """
    method: Method = parse_method(delta.manifest.method)
    if delta.manifest.reach == "all" and not method.reaches:
        raise OffsiteError(f"A delta of '{method.kind}' cannot tune all blocks; use lora.")
    return method


def attach(
    method: Method, own: nn.Module, delta: Delta, route: Route, auto_class: str
) -> tuple[Attached, dict[str, TensorEntry]]:
    """Attach a delta's method and head to a copy of the model, first to one without weights.

    What is too large thus fails where it takes no memory.

    Raises:
        OffsiteError: a delta that does not fit.
    """
    skeleton = build_skeleton(own.config, auto_class)
    if method.side:
        attach_side(skeleton, sides_of(own)[method.side])
    with torch.device("meta"):  # what a method adds takes no memory there either
        attach_head(skeleton, delta.manifest.labels)
        route.attach(method, skeleton)
    attach_head(own, delta.manifest.labels)
    return route.attach(method, own)
