"""A delta in its place in the full model: checked against its contract, attached, or kept apart."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from offsite.codec import require, to_json
from offsite.deltas import parse_method
from offsite.deltas.method import Attached, Method
from offsite.deltas.reparameterisation.lora import cuts
from offsite.errors import OffsiteError
from offsite.exchange.contract import (
    check_change,
    check_contract,
    check_entries,
    check_norm,
    check_side,
)
from offsite.exchange.delta import PEFT_CONFIG, PEFT_WEIGHTS, Delta
from offsite.exchange.file_set import Sha256
from offsite.exchange.ledger import APART, MERGED
from offsite.exchange.manifest import Id
from offsite.exchange.record import Record
from offsite.exchange.side import (
    HEAD,
    Given,
    divide,
    give_side,
    read_sides,
    side_file,
    sides_of,
)
from offsite.files import new_folder, read_json, write_file
from offsite.model.blocks import assemble, get_blocks, rename_blocks
from offsite.model.checkpoint import build_skeleton, load_model
from offsite.model.heads import give_head, head_tensors, set_head
from offsite.model.stored import model_fingerprint
from offsite.model.tensors import TensorEntry, describe, load_tensors, parse, save_tensors
from offsite.owner.reach import narrowed, widened

MANIFEST, WEIGHTS = APART, "plugged.safetensors"
TUNED = MERGED  # beside a model that a delta was merged into: which, and what it changed


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


def attach_delta(
    model: str | Path | nn.Module,
    delta: Delta,
    record: Record,
    side: Given | None = None,
) -> Placed:
    """Check a delta and attach it, unmerged, to a copy of the full model's blocks that it tunes.

    Raises:
        OffsiteError: another model or offer, or a delta that breaks the return contract.
    """
    entry = record.find(delta.manifest.parent)
    if isinstance(model, (str, Path)):
        model = load_model(model, record.auto_class)
    assert isinstance(model, nn.Module)
    if model_fingerprint(model) != record.fingerprint:
        raise OffsiteError(
            f"This is not the model that the record was made for ('{record.model_name}'); plug the "
            "delta into exactly the weights the offer was cut from."
        )
    check_contract(delta, entry)
    method = parse_method(delta.manifest.method)
    if delta.manifest.reach == "all" and not method.reaches:
        raise OffsiteError(f"A delta of '{method.kind}' cannot tune all blocks; use lora.")
    mapping, path = entry.tuned(delta.manifest.reach), record.block_path
    blocks = tuple(mapping.values())
    rest = divide(delta.manifest.tensors, delta.manifest.head)[0]
    given = rename_blocks(rest, path, mapping)
    narrow = cuts(given, entry.kept, path)
    plain = apart(model, blocks)
    skeleton = build_skeleton(model.config, record.auto_class)
    for group in read_sides(side or {}):
        give_side(plain, group)
    if method.side:
        check_side(plain, method.side, entry)
        give_side(skeleton, sides_of(plain)[method.side])
    for place in (skeleton, plain):  # what is too large fails first where it takes no memory
        give_head(place, delta.manifest.labels)
        attached = method.attach(place, blocks)
        expected = attached.expected(given)
        check_entries(given, narrowed(expected, narrow))
    tensors = delta.values()
    check_norm(tensors, entry.contract)
    own, head = divide(tensors, delta.manifest.head)
    own = widened(rename_blocks(own, path, mapping), expected, narrow)
    attached.load(own)
    set_head(head_tensors(plain), head)
    attached.model.requires_grad_(False).eval()
    return Placed(attached, model, blocks, own | head)


def apart(model: nn.Module, own: Sequence[int]) -> nn.Module:
    """A model over the same tensors but for the blocks ``own``, which are copies in float32."""
    blocks = [
        copy.deepcopy(block).float() if index in own else block
        for index, block in enumerate(get_blocks(model))
    ]
    return assemble(model, blocks, range(len(blocks)))


class PluggedManifest(BaseModel):
    """What ``plugged.json`` says: which model, which blocks of it, which method, which tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["plugged"] = "plugged"
    schema_version: Literal[1] = 1
    fingerprint: Sha256
    method: dict[str, Any]
    adapter: tuple[int, ...]
    tensors: dict[str, TensorEntry]
    head: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    delta: Id | None = None


@dataclass(frozen=True)
class Plugged:
    """A delta in its place in the full model: tensors under the full model's names.

    Attributes:
        method: how it was tuned.
        adapter: positions in the full model of the blocks that it tunes.
        tensors: its numbers.
        fingerprint: of the full model.
        peft_config: the text of ``adapter_config.json`` where peft has the method.
        head: names of the tensors that are a classifier head; ``labels`` are its classes.
        delta: the id of the delta; None where an older release did not note it.
    """

    method: Method
    adapter: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    fingerprint: str
    peft_config: str | None = None
    head: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    delta: str | None = None

    @property
    def own(self) -> dict[str, torch.Tensor]:
        """The method's own numbers, without a head."""
        return divide(self.tensors, self.head)[0]

    @property
    def head_values(self) -> dict[str, torch.Tensor]:
        """The classifier head, if one came along.

        Raises:
            OffsiteError: a name that is not among the tensors.
        """
        known = set(self.head) <= set(self.tensors)
        require(known, "The delta names a head that is not among its tensors; plug it anew.")
        return divide(self.tensors, self.head)[1]

    def save(self, folder: str | Path) -> None:
        """Write a folder for :func:`load_plugged`; where peft has the method, peft opens it too.

        Raises:
            OffsiteError: the folder exists.
        """
        with new_folder(folder) as partial:
            self.fill(partial)

    def fill(self, folder: Path) -> None:
        """Write the files of :meth:`save` into an empty folder."""
        save_tensors(self.own, folder / (PEFT_WEIGHTS if self.peft_config else WEIGHTS))
        if self.head:
            save_tensors(self.head_values, folder / side_file(HEAD))
        if self.peft_config:
            write_file(folder / PEFT_CONFIG, self.peft_config)
        manifest = PluggedManifest(
            fingerprint=self.fingerprint,
            method=to_json(self.method),
            adapter=self.adapter,
            tensors=describe(self.tensors),
            head=self.head,
            labels=self.labels,
            delta=self.delta,
        )
        write_file(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")

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
            manifest.head,
            manifest.labels,
            manifest.delta,
        )


def merge_delta(
    model: str | Path | nn.Module,
    delta: Delta,
    record: Record,
    *,
    side: Given | None = None,
) -> Any:
    """The full model with a delta in it, for measurements: nothing is entered in the ledger.

    Raises:
        OffsiteError: see :func:`offsite.owner.offering.plug`.
    """
    placed = attach_delta(model, delta, record, side)
    attached = placed.attached
    plugged = attached.merge() if attached.method.merges else attached.model
    dtype = next(placed.full.parameters()).dtype
    for index in placed.blocks:
        get_blocks(plugged)[index].to(dtype)
    return plugged.eval()


def place(
    model: str | Path | nn.Module,
    delta: Delta,
    record: Record,
    *,
    side: Given | None = None,
) -> Plugged:
    """Check a delta like :func:`merge_delta` and keep it apart from the model.

    An intrinsic prompt is kept as the plain prompt it decodes to, so serving needs no decoder.

    Raises:
        OffsiteError: see :func:`offsite.owner.offering.plug`.
    """
    placed, manifest = attach_delta(model, delta, record, side), delta.manifest
    method, tensors, config = placed.attached.served(placed.tensors)
    if placed.attached.method.merges:  # what it would change when it is merged later
        check_change(placed.full, placed.attached.merge())
    return Plugged(
        method, placed.blocks, tensors, record.fingerprint, config,
        manifest.head, manifest.labels, manifest.id,
    )  # fmt: skip


def write_note(folder: Path, delta: str, before: nn.Module, after: nn.Module) -> None:
    """Say beside a merged model which delta it holds, and which parameters that changed."""
    note = {"kind": "tuned", "delta": delta, "tuned": sorted(tuned_names(before, after))}
    write_file(folder / TUNED, json.dumps(note, indent=1) + "\n")


def tuned_names(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of the parameters of ``after`` that ``before`` lacks or has with other values."""
    old = dict(before.named_parameters())
    return {
        name
        for name, value in after.named_parameters()
        if name not in old
        or old[name].shape != value.shape
        or not (old[name] is value or torch.equal(old[name].detach(), value.detach()))
    }
