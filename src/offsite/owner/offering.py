"""The model owner's side: make an offer, plug a delta."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.codec import to_json
from offsite.compress.step import Context, Step, check_data, compress, recipe_identity
from offsite.errors import OffsiteError
from offsite.exchange.commitment import commit, new_salt
from offsite.exchange.contract import check_change, make_contract
from offsite.exchange.delta import Delta
from offsite.exchange.ledger import Ledger
from offsite.exchange.manifest import (
    OfferManifest,
    Reach,
    check_name,
    new_id,
    now,
    tool_versions,
)
from offsite.exchange.offer import Offer
from offsite.exchange.record import OfferRecord, Record
from offsite.exchange.side import Given, give_side, read_sides, sides_of
from offsite.model.blocks import alias, block_path, get_blocks
from offsite.model.checkpoint import Checkpoint, load_model, pick_device
from offsite.model.split import Adapter, ends, join, places
from offsite.owner.cutting import cut_checkpoint, cut_module, to_native
from offsite.owner.plugging import merge_delta
from offsite.owner.reach import check_reach
from offsite.owner.verbatim import verbatim_tensors
from offsite.tasks.data import identity_of, rows_of
from offsite.tasks.task import Task
from offsite.tasks.text.causal import CausalText
from offsite.training.identity import Identity, processor_identity
from offsite.training.resume import same_run


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
    side: Given | None = None,
    reach: Reach = "adapter",
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
        dtype: dtype to compress a checkpoint in; None for float32. A model in memory is compressed
            in its own. The offer keeps the dtype that the weights came in.
        name: what the manifest calls the model; by default its family, such as ``llama``. The
            record, which stays, has the name of the folder.
        reach: ``all`` lets a low-rank delta tune the middle blocks too, each change going to the
            block that the emulator's stands for.
        work, resume: folder of what a long step needs to be resumed, and whether to.
        side: groups of side tensors to ship, by name, each as tensors or as a file, such as
            ``{"prompt_decoder": offsite.learn_decoder(...)}``; those beside the model go along.

    Returns:
        The offer, and the private record without which no delta can be plugged.

    Raises:
        OffsiteError: a split, recipe or data set that cannot work with this model, or ``reach`` of
            ``all`` over harmonizers, which stand for no block.
    """
    task = task or CausalText()
    check_name(name)
    check_data(recipe, data)
    source: Checkpoint | None = None
    if not isinstance(model, nn.Module):
        source = model if isinstance(model, Checkpoint) else Checkpoint.of(model, task.auto_class)
        processor = processor or source.processor
        cut = cut_checkpoint(source, adapter, recipe, seed, dtype)
    else:
        cut = cut_module(model, adapter)
    family = None
    if cut.rest:
        target = pick_device(str(device)) if device is not None else _device_of(cut.model, source)
        full = cut.model.to(target).eval()
        given = data

        def run() -> Identity:
            return Identity.of(
                model=cut.fingerprint,
                adapter=cut.split.adapter,
                recipe=recipe_identity(recipe),
                task=task.identity(),
                data=identity_of(given),
                processor=processor_identity(processor),
                seed=seed,
                dtype=str(dtype),
            )

        data = rows_of(task, data, processor, full, train=True)
        context = Context(full, cut.split, task, data, seed, work, resume)
        with same_run(work, run, resume):
            middle = compress(recipe, context, cut.middle)
        if reach == "all":
            check_reach(get_blocks(full), middle)
        full.requires_grad_(False)
        emulator, positions = join(full, cut.split, middle)
        verbatim = verbatim_tensors(get_blocks(full), middle, cut.native)
    else:
        emulator, middle = cut.model, cut.middle
        family = alias(emulator)  # transformers built it as it is
        positions = places(cut.split, middle.positions)[1]
        verbatim = {
            f"{p}.{name}": tensor.numel()
            for p, block in zip(middle.positions, middle.blocks, strict=True)
            for name, tensor in block.named_parameters()
        }
    to_native(emulator, cut)
    for group in read_sides(side or {}):
        give_side(emulator, group)
    hashes: dict[str, Any] = {name: group.hash for name, group in sides_of(emulator).items()}
    label = name or (
        Path(source.name).resolve().name if source is not None else type(model).__name__
    )
    path = block_path(emulator)
    contract = make_contract(emulator, path, positions, reach)
    salt = new_salt()
    manifest = OfferManifest(
        id=new_id(),
        created=now(),
        expires=expires,
        model_name=name or emulator.config.model_type,
        task=task.name,
        block_path=path,
        adapter=positions,
        files={},
        tensors={},
        tools=tool_versions(),
        fingerprint=commit(cut.fingerprint, salt),
        contract=contract,
    )
    entry = OfferRecord(
        offer=manifest.id,
        created=manifest.created,
        adapter=cut.split.adapter,
        emulator_adapter=positions,
        middle=middle.positions,
        total=cut.split.total,
        recipe=[to_json(step) for step in recipe],
        seed=seed,
        contract=contract,
        verbatim_tensors=verbatim,
        **hashes,
        kept={n: k for n, k in middle.kept.items() if int(n.split(".")[0]) in middle.positions},
        expires=expires,
        salt=salt,
    )
    record = Record(
        fingerprint=cut.fingerprint,
        model_name=label,
        auto_class=task.auto_class,
        block_path=path,
        middle_parameters=cut.middle_parameters,
        model_bytes=cut.model_bytes,
        offers=(entry,),
    )
    return Offer(emulator, manifest, processor, record=record, family=family), record


def _device_of(model: nn.Module, source: object) -> torch.device:
    return pick_device() if source is not None else next(model.parameters()).device


def plug(
    model: str | Path | nn.Module,
    delta: Delta,
    record: Record,
    *,
    side: Given | None = None,
    again: bool = False,
    late: bool = False,
) -> Any:
    """Put a delta into the full model and enter it in the record's ledger.

    A record that was loaded or saved accepts one delta per offer and round: the delta is entered in
    its file, under a lock, once everything about it was checked and before the model is returned.
    :func:`offsite.owner.writing.write_plugged` does the same with a folder, in one transaction.

    Args:
        model: the full model: folder, hub name, or in memory. One in memory keeps its weights and
            shares them, adapter blocks apart; it is frozen and put in evaluation mode.
        delta: as loaded by :meth:`Delta.load`.
        record: the private record that was made with the offer.
        side: the groups of side tensors that were shipped and that the delta works with, as in
            :func:`make_offer`; the folder of the offer will do for each.
        again: take a delta that was plugged before once more.
        late: take a delta although its offer has expired.

    Returns:
        The tuned model, plain where the method merges and with its modules attached where it does
        not. Merging is done in float32 and rounded to the model's dtype; an untrained delta gives
        the model back bit for bit.

    Raises:
        OffsiteError: another model, another offer, a delta that was plugged before, or one that
            breaks the return contract; all of that is checked before a tensor of the delta is read,
            finiteness and norm after.
    """
    ledger = Ledger(record, again=again, late=late)
    ledger.check(delta.manifest)
    if isinstance(model, (str, Path)):
        model = load_model(model, record.auto_class)
    assert isinstance(model, nn.Module)
    tuned = merge_delta(model, delta, record, side=side)
    check_change(model, tuned)
    with ledger.accepting(delta.manifest):
        return tuned


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
