"""Make an offer and its record: cut a model and compress its middle."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.codec import to_json
from offsite.compress.step import Step, check_data
from offsite.errors import OffsiteError
from offsite.exchange.commitment import commit, new_salt
from offsite.exchange.contract import make_contract
from offsite.exchange.manifest import (
    OfferManifest,
    Reach,
    check_name,
    new_id,
    now,
    tool_versions,
)
from offsite.exchange.offer import Offer
from offsite.exchange.offer_record import OfferRecord
from offsite.exchange.record import Record
from offsite.exchange.side import GivenSides, attach_side, read_sides, sides_of
from offsite.exchange.wording import parse_parts, without_words
from offsite.model.blocks import block_path
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import Adapter, ends
from offsite.owner.cutting import Cut, cut_checkpoint, cut_module
from offsite.owner.emulating import Emulated, Request, emulate
from offsite.tasks.task import Task
from offsite.tasks.text.causal import CausalText
from offsite.training.devices import pick_device


def make_offer(
    model: str | Path | nn.Module | Checkpoint,
    *,
    adapter: Adapter = ends(2, 2),  # noqa: B008 (frozen)
    recipe: Sequence[Step] = (),
    data: Any = None,
    task: Task | None = None,
    processor: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    name: str | None = None,
    expires: datetime | None = None,
    side: GivenSides | None = None,
    reach: Reach = "adapter",
    leave_out: Collection[str] = (),
    work: Path | None = None,
    resume: bool = False,
) -> tuple[Offer, Record]:
    """Cut a model and compress its middle.

    Args:
        model: folder, hub name, checkpoint, or a transformers model in memory, whose weights stay
            as they are and are shared with the offer; it is frozen and put in evaluation mode.
            From a folder, a recipe that only drops blocks reads only the blocks it keeps.
        adapter: a rule such as ``ends(2, 2)`` or the positions themselves.
        recipe: compression steps, applied in order to the middle; none ships the middle whole.
        data: the owner's calibration data (a path, or rows the task made), where a step needs it.
        task: what kind of data; plain text by default.
        processor: tokenizer or image processor; read from ``model`` when that is a path.
        dtype: dtype to compress a checkpoint in; None for float32, or for that of the weights where
            float32 does not fit into memory. A model in memory is compressed in its own. The offer
            keeps the dtype that the weights came in.
        name: what the manifest calls the model; by default its family, such as ``llama``. The
            record, which stays, has the name of the folder.
        reach: ``all`` lets a low-rank delta tune the middle blocks too, each change goes to the
            block that the emulator's block replaces.
        work, resume: folder of what a long step needs to be resumed, and whether to.
        side: groups of side tensors to ship, by name, each as tensors or as a file, such as
            ``{"prompt_decoder": offsite.learn_decoder(...)}``; those of the model are sent too.
        leave_out: words not to ship: ``added-tokens``, ``chat-template``, ``labels``.

    Returns:
        The offer, and the private record without which no delta can be plugged.

    Raises:
        OffsiteError: a split, recipe or data set that cannot work with this model, or ``reach`` of
            ``all`` over harmonizers, which replace no single block.
    """
    task = task or CausalText()
    check_name(name)
    check_data(recipe, data)
    groups, parts = read_sides(side or {}), parse_parts(leave_out, task.name)
    source = model if isinstance(model, nn.Module) else as_checkpoint(model, task)
    if isinstance(source, Checkpoint):
        processor = processor or source.processor
    request = Request(adapter, recipe, task, data, processor, seed, dtype, reach, work, resume)
    target = device_for(source, device)
    cut = cut_source(source, request)
    made = emulate(cut, request, target)
    for group in groups:
        attach_side(made.model, group)
    manifest, salt = manifest_of(made, cut, request, name, expires)
    entry = entry_of(made, cut, request, manifest, salt)
    record = Record(
        fingerprint=cut.fingerprint,
        model_name=name or label_of(source),
        auto_class=task.auto_class,
        block_path=manifest.block_path,
        middle_parameters=cut.middle_parameters,
        model_bytes=cut.model_bytes,
        offers=(entry,),
    )
    processor = without_words(made.model, processor, parts)
    return Offer(made.model, manifest, processor, record=record, family=made.family), record


def as_checkpoint(model: str | Path | Checkpoint, task: Task) -> Checkpoint:
    """The model of a folder or hub name."""
    return model if isinstance(model, Checkpoint) else Checkpoint.of(model, task.auto_class)


def cut_source(source: Checkpoint | nn.Module, request: Request) -> Cut:
    """Cut a model into adapter and middle, reading from disk only the blocks that are needed."""
    if isinstance(source, Checkpoint):
        return cut_checkpoint(source, request.adapter, request.recipe, request.seed, request.dtype)
    return cut_module(source, request.adapter)


def device_for(source: Checkpoint | nn.Module, device: str | torch.device | None) -> torch.device:
    """The device to compute on: the one given, that of a model in memory, or the best one here."""
    if device is not None:
        return pick_device(device)
    return pick_device() if isinstance(source, Checkpoint) else next(source.parameters()).device


def label_of(source: Checkpoint | nn.Module) -> str:
    """What the record calls a model by default: its folder, or its class."""
    if isinstance(source, Checkpoint):
        return Path(source.name).resolve().name
    return type(source).__name__


def manifest_of(
    made: Emulated, cut: Cut, request: Request, name: str | None, expires: datetime | None
) -> tuple[OfferManifest, str]:
    """The manifest of a new offer, and the salt of its commitment to the full model."""
    salt = new_salt()
    manifest = OfferManifest(
        id=new_id(),
        created=now(),
        expires=expires,
        model_name=name or made.model.config.model_type,
        task=request.task.name,
        block_path=block_path(made.model),
        adapter=made.adapter,
        files={},
        tensors={},
        tools=tool_versions(),
        fingerprint=commit(cut.fingerprint, salt),
        contract=make_contract(made.model, made.adapter, request.reach),
    )
    return manifest, salt


def entry_of(
    made: Emulated, cut: Cut, request: Request, manifest: OfferManifest, salt: str
) -> OfferRecord:
    """What the owner must remember of a new offer."""
    hashes: dict[str, Any] = {name: group.hash for name, group in sides_of(made.model).items()}
    return OfferRecord(
        offer=manifest.id,
        created=manifest.created,
        adapter=cut.split.adapter,
        emulator_adapter=made.adapter,
        middle=made.middle.positions,
        total=cut.split.total,
        recipe=[to_json(step) for step in request.recipe],
        seed=request.seed,
        contract=manifest.contract,
        verbatim_tensors=made.verbatim,
        kept=dict(made.middle.kept),
        expires=manifest.expires,
        salt=salt,
        **hashes,
    )


def check_record(record: Path, model: Checkpoint) -> None:
    """Refuse, before any work, a record that is another model's or cannot be written.

    Raises:
        OffsiteError: saying to name another record.
    """
    if record.exists():
        if Record.load(record).fingerprint != model.fingerprint:
            raise OffsiteError(
                f"The record '{record}' belongs to another model; name another --record."
            )
        writable = os.access(record, os.W_OK)
    else:
        above = next(folder for folder in record.absolute().parents if folder.exists())
        writable = above.is_dir() and os.access(above, os.W_OK)
    if not writable:
        raise OffsiteError(f"The record '{record}' cannot be written there; name another --record.")
