"""The ledger: a record accepts one delta for each offer and round, even after a kill.

It is kept in the record's file. A delta is entered as *pending*, the model gets its name, and the
entry becomes *accepted*, all under one lock. A pending entry in the file is therefore the work of a
process that died: it counts as accepted if the model was written, else not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from offsite.errors import OffsiteError
from offsite.exchange.manifest import DeltaManifest, check_clock, now
from offsite.exchange.offer_record import OfferRecord, Pending
from offsite.exchange.record import Record
from offsite.files import locked, read_json

MERGED, APART = "offsite.json", "plugged.json"  # files of a plugged model that name its delta


@dataclass(frozen=True)
class Ledger:
    """The ledger of a record.

    Attributes:
        record: as it was loaded or saved. One that never was has no file, so it is only read.
        again: accept a delta that was plugged before.
        late: accept a delta of an expired offer.
    """

    record: Record
    again: bool = False
    late: bool = False

    def check(self, delta: DeltaManifest) -> Record:
        """Refuse a delta that the ledger would not take; returns the record as it is now.

        Raises:
            OffsiteError: plugged before, a second one for its round, of an expired offer, or the
                record is an old copy.
        """
        record = self.record if self.record.path is None else Record.load(self.record.path)
        record.check_newest()
        record = resolve_pending(record)
        check_expiry(record.find(delta.parent), late=self.late)
        check_parent(record.find(delta.parent), delta)
        record.check_fresh(delta.parent, delta.id, delta.round, again=self.again)
        return record

    @contextmanager
    def accepting(self, delta: DeltaManifest, out: Path | None = None) -> Iterator[None]:
        """Check a delta again, run the block that names the model, and enter the delta.

        Args:
            delta: what is plugged.
            out: the folder that the block renames into place; None for a model in memory.

        Raises:
            OffsiteError: see :meth:`check`; another process was faster.
        """
        path = self.record.path
        if path is None:
            yield
            return
        with locked(path):
            before = self.check(delta)
            if out is not None:
                where = str(out.absolute())
                note = Pending(delta=delta.id, round=delta.round, out=where, at=now())
                before.replaced(before.find(delta.parent), pending=note).write(path)
            try:
                yield
            except BaseException:
                with suppress(OffsiteError):  # the pending entry says as much
                    resolve_pending(Record.load(path)).write(path)
                raise
            before.accept(delta.parent, delta.id, delta.round).write(path)


def check_expiry(entry: OfferRecord, *, late: bool = False) -> None:
    """Refuse the answer to an offer that has expired, unless it may be ``late``.

    Raises:
        OffsiteError: with the date; also where this machine's clock cannot judge it.
    """
    if late:
        return
    check_clock(entry.created, entry.expires)
    if entry.expires is not None and entry.expires < now():
        raise OffsiteError(
            f"The offer {entry.offer[:8]}... expired at {entry.expires.isoformat()}; make a new "
            "offer, or accept this delta with --late."
        )


def check_parent(entry: OfferRecord, delta: DeltaManifest) -> None:
    """Refuse a delta that was tuned on an offer that had been changed on the way.

    Raises:
        OffsiteError: the manifest it names is not one the offer was written with.
    """
    if entry.sent and delta.offer_digest and delta.offer_digest not in entry.sent:
        raise OffsiteError(
            f"The delta {delta.id[:8]}... was tuned on an offer that was changed on the way; "
            "send the offer again, signed."
        )


def resolve_pending(record: Record) -> Record:
    """The record with every pending entry decided by the files on the disk."""
    for entry in record.offers:
        if (left := entry.pending) is None:
            continue
        if holds_delta(Path(left.out), left.delta):
            record = record.accept(entry.offer, left.delta, left.round)
        else:
            record = record.replaced(entry, pending=None)
    return record


def holds_delta(folder: Path, delta: str) -> bool:
    """Whether a folder is a plugged model that says it holds the delta of this id."""
    for path in (folder / MERGED, folder / APART):
        if path.is_file():
            try:
                note = read_json(path)
            except OffsiteError:
                continue
            if isinstance(note, dict) and note.get("delta") == delta:
                return True
    return False
