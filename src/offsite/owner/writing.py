"""Write a plugged model and its entry in the ledger: both, or neither."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from offsite.deltas import method_text, parse_method
from offsite.errors import OffsiteError
from offsite.exchange.bounds import check_range
from offsite.exchange.delta import Delta
from offsite.exchange.ledger import MERGED, Ledger
from offsite.exchange.record import Record
from offsite.exchange.side import GivenSides
from offsite.files import check_free, new_folder, write_file
from offsite.model.checkpoint import load_model, load_processor, quiet
from offsite.owner.decode import Decoding
from offsite.owner.plugged import Plugged
from offsite.owner.plugging import keep_apart, merge_delta


def write_plugged(
    out: str | Path,
    model: str | Path,
    delta: Delta,
    record: Record,
    *,
    as_adapter: bool = False,
    side: GivenSides | None = None,
    dtype: torch.dtype | None = None,
    again: bool = False,
    late: bool = False,
    decoding: Decoding | None = None,
) -> Plugged | nn.Module:
    """Plug a delta and write the result; the folder and the ledger's entry appear together.

    A kill at any moment leaves either no folder and no entry, or the folder and an entry.

    Args:
        out: folder to write; must not exist.
        model: folder or hub name of the full model.
        delta: as loaded by :meth:`Delta.load`.
        record: the private record, as loaded by :meth:`Record.load`.
        as_adapter: keep the delta apart from the model instead of merging it.
        side: see :func:`offsite.owner.plugging.plug`.
        dtype: dtype of a merged model; None for that of its checkpoint.
        again: accept a delta that was plugged before.
        late: accept a delta of an expired offer.
        decoding: teach the merged model what the emulator learnt beyond it.

    Returns:
        What was written: the tuned model, or the delta in its place.

    Raises:
        OffsiteError: see :func:`offsite.owner.plugging.plug`; the folder exists, or the method of
            the delta cannot be merged.
    """
    out, manifest = Path(out), delta.manifest
    check_free(out)
    ledger = Ledger(record, again=again, late=late)
    ledger.check(manifest)
    if not as_adapter and not parse_method(manifest.method).merges:
        raise OffsiteError(
            f"A delta of '{method_text(manifest.method)}' cannot be merged into weights; add "
            "--as-adapter and run it with offsite.load_plugged."
        )
    if decoding is not None:
        decoding.check(delta, kept_apart=as_adapter)
    full = load_model(model, record.auto_class)  # as the record knows it
    if as_adapter:
        plugged = keep_apart(full, delta, record, side=side)
        with new_folder(out, around=ledger.accepting(manifest, out)) as partial:
            plugged.fill(partial)
        return plugged
    tuned = merge_delta(full, delta, record, side=side)
    processor = load_processor(model, manifest.task)
    if decoding is not None:
        tuned = decoding.taught(full, tuned, delta, processor)
    if dtype is not None:
        tuned = tuned.to(dtype)
        check_range(tuned)
    with new_folder(out, around=ledger.accepting(manifest, out)) as partial:
        with quiet():
            tuned.save_pretrained(partial)
        if processor is not None:
            processor.save_pretrained(partial)
        write_note(partial, manifest.id, full, tuned)
    return tuned  # type: ignore[no-any-return]


def write_note(folder: Path, delta: str, before: nn.Module, after: nn.Module) -> None:
    """Note in a merged model's folder which delta it holds and which parameters changed."""
    note = {"kind": "tuned", "delta": delta, "tuned": sorted(tuned_names(before, after))}
    write_file(folder / MERGED, json.dumps(note, indent=1) + "\n")


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
