"""The model owner's private record of every offer of one model.

It is written beside an offer, never inside it. One file may hold several offers of the same model,
because two offers with different kept blocks reveal their union. It also holds the ledger
(:mod:`offsite.exchange.ledger`), which accepts one delta per offer and round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr

from offsite.codec import validate
from offsite.errors import OffsiteError
from offsite.exchange.file_set import Sha256
from offsite.exchange.manifest import now
from offsite.exchange.offer_record import Accepted, OfferRecord, check_same_noise
from offsite.exchange.rollback import check_newest, remember
from offsite.exchange.seal import check_seal, sealed
from offsite.files import locked, read_json, write_file


class Record(BaseModel):
    """All offers of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["record"] = "record"
    schema_version: Literal[1] = 1
    fingerprint: Sha256
    model_name: str
    auto_class: str
    block_path: str
    middle_parameters: int
    model_bytes: int
    offers: tuple[OfferRecord, ...]
    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file it was loaded from or saved to; None for one that is only in memory."""
        return self._path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record.

        Raises:
            OffsiteError: missing file, another format, or changed since it was sealed.
        """
        record: Record = validate(cls, check_seal(read_json(path), path), path)
        record._path = Path(path)
        return record

    def save(self, path: str | Path, *, sent: Mapping[str, str | None] | None = None) -> None:
        """Write the record; when ``path`` holds offers of the same model, add to them.

        After that the record knows its file, and :func:`offsite.plug` enters deltas there.

        Args:
            path: the file.
            sent: digests of the manifests of offers that are being written, by the offers' ids.

        Raises:
            OffsiteError: ``path`` is the record of another model, an old copy, accepted another
                delta, or holds an offer with another draw of noise.
        """
        with locked(path):
            offers = {entry.offer: entry for entry in self.offers}
            if Path(path).exists():
                old = Record.load(path)
                if old.fingerprint != self.fingerprint:
                    raise OffsiteError(
                        f"The record '{path}' belongs to another model; name another --record file."
                    )
                old.check_newest()
                kept = {entry.offer: entry for entry in old.offers}
                for entry in self.offers:
                    if entry.offer not in kept:
                        check_same_noise(entry, old.offers)
                mine = {k: v.merge(kept[k]) if k in kept else v for k, v in offers.items()}
                offers = kept | mine
            for offer, digest in (sent or {}).items():
                if digest is not None and digest not in offers[offer].sent:
                    more = {"sent": (*offers[offer].sent, digest)}
                    offers[offer] = offers[offer].model_copy(update=more)
            self.model_copy(update={"offers": tuple(offers.values())}).write(path)
        self._path = Path(path)

    def write(self, path: str | Path) -> None:
        """Write exactly this record, sealed, to ``path``, which the caller has locked."""
        data = sealed(json.loads(self.model_dump_json()))
        write_file(path, json.dumps(data, indent=1) + "\n", private=True)
        remember(self.state)

    @property
    def state(self) -> dict[str, frozenset[str]]:
        """The ids of the deltas that each offer accepted; only grows while a record lives."""
        return {e.offer: frozenset(known.delta for known in e.accepted) for e in self.offers}

    def check_newest(self) -> None:
        """Refuse an old copy of the record; see :mod:`offsite.exchange.rollback`.

        Raises:
            OffsiteError: it lacks what was entered later.
        """
        if self._path is not None:
            check_newest(self.state, self._path)

    def find(self, offer: str) -> OfferRecord:
        """The record of one offer.

        Raises:
            OffsiteError: no offer of that id here: the delta answers somebody else's offer.
        """
        for entry in self.offers:
            if entry.offer == offer:
                return entry
        raise OffsiteError(
            f"The delta answers the offer {offer[:8]}..., which is not in this record; use the "
            "record that was written with that offer."
        )

    @property
    def verbatim(self) -> float:
        """Share of all parameters that left unchanged, over all offers together (0 to 1).

        Embeddings, head and adapter blocks leave with every offer and count. Of a tensor that left
        in parts several times, the largest part counts. Compressed tensors count for nothing, so
        this says what was copied, not what can be recovered.
        """
        last = self.offers[-1].adapter_tensors(self.block_path)
        outside = self.parameters - self.middle_parameters - sum(last.values())
        union: dict[str, int] = {}
        for offer in self.offers:
            left = {**offer.verbatim_tensors, **offer.adapter_tensors(self.block_path)}
            for name, count in left.items():
                union[name] = max(union.get(name, 0), count)
        return (outside + sum(union.values())) / self.parameters

    @property
    def parameters(self) -> int:
        """How many parameters the model has: ``model_bytes`` in the dtype of its contract."""
        entry = next(iter(self.offers[-1].contract.tensors.values()))
        return self.model_bytes * math.prod(entry.shape) // entry.bytes

    def check_fresh(self, offer: str, delta: str, round: int, *, again: bool = False) -> None:
        """Refuse a delta that was plugged before, or a second one for the same round.

        Raises:
            OffsiteError: replayed, the round is taken by another delta, or was never opened.
        """
        if round != self.find(offer).round:
            raise OffsiteError(
                f"The delta answers round {round} of its offer, but round "
                f"{self.find(offer).round} is open; tune the offer of that round."
            )
        for accepted in self.find(offer).accepted:
            if accepted.delta == delta and not again:
                raise OffsiteError(
                    f"The delta {delta[:8]}... was plugged already at {accepted.at.isoformat()}; "
                    "add --again to plug it once more."
                )
            if accepted.round == round and accepted.delta != delta:
                raise OffsiteError(
                    f"Another delta ({accepted.delta[:8]}...) was accepted for round {round} of "
                    "this offer, and each round accepts one; make a new offer."
                )

    def accept(self, offer: str, delta: str, round: int) -> Record:
        """This record with the delta entered in the ledger."""
        entry = self.find(offer)
        accepted = entry.accepted
        if all(known.delta != delta for known in accepted):
            accepted = (*accepted, Accepted(delta=delta, round=round, at=now()))
        return self.replaced(entry, accepted=accepted, pending=None)

    def replaced(self, entry: OfferRecord, **changes: Any) -> Record:
        """This record with one of its entries changed."""
        changed = entry.model_copy(update=changes)
        offers = tuple(changed if e.offer == entry.offer else e for e in self.offers)
        return self.model_copy(update={"offers": offers})
