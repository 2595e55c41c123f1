"""Check a delta, then merge it into the full model or keep it apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from offsite.exchange.bounds import check_change
from offsite.exchange.delta import Delta
from offsite.exchange.ledger import Ledger
from offsite.exchange.record import Record
from offsite.exchange.side import GivenSides
from offsite.owner.placing import attach_delta
from offsite.owner.plugged import Plugged


def plug(
    model: str | Path | nn.Module,
    delta: Delta,
    record: Record,
    *,
    side: GivenSides | None = None,
    again: bool = False,
    late: bool = False,
) -> Any:
    """Put a delta into the full model and enter it in the record's ledger.

    A record that was loaded or saved accepts one delta per offer and round. The delta is entered in
    the record's file, under a lock, after all checks and before the model is returned.
    :func:`offsite.owner.writing.write_plugged` does the same with a folder, in one transaction.

    Args:
        model: the full model: folder, hub name, or in memory. One in memory keeps its weights and
            shares them, adapter blocks apart; it is frozen and put in evaluation mode.
        delta: as loaded by :meth:`Delta.load`.
        record: the private record that was made with the offer.
        side: the groups of side tensors that were shipped and that the delta works with, as in
            :func:`offsite.make_offer`; the folder of the offer will do for each.
        again: accept a delta that was plugged before.
        late: accept a delta of an expired offer.

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
    tuned = merge_delta(model, delta, record, side=side)
    with ledger.accepting(delta.manifest):
        return tuned


def merge_delta(
    model: str | Path | nn.Module, delta: Delta, record: Record, *, side: GivenSides | None = None
) -> Any:
    """The full model with a delta in it, for measurements: nothing is entered in the ledger.

    Raises:
        OutOfBounds: values larger than the offer allows, or that change a tensor too far.
        OffsiteError: see :func:`plug`.
    """
    placed = attach_delta(model, delta, record, side)
    tuned = placed.tuned()
    check_change(placed.full, tuned)
    return tuned


def keep_apart(
    model: str | Path | nn.Module, delta: Delta, record: Record, *, side: GivenSides | None = None
) -> Plugged:
    """Check a delta like :func:`merge_delta` and keep it apart from the model.

    An intrinsic prompt is kept as the plain prompt it decodes to, so serving needs no decoder.

    Raises:
        OffsiteError: see :func:`plug`.
    """
    placed, manifest = attach_delta(model, delta, record, side), delta.manifest
    method, tensors, config = placed.attached.served(placed.tensors)
    check_change(placed.full, placed.tuned())  # its change, also where it is served
    return Plugged(
        method, placed.blocks, tensors, record.fingerprint, config,
        manifest.head, manifest.labels, manifest.id,
    )  # fmt: skip
