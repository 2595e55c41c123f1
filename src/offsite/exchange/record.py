"""The model owner's private record: what each offer of one model was made of.

It is written beside an offer, never inside it. One file may hold several offers of the same model,
because two offers with different kept blocks reveal their union. It also holds the ledger
(:mod:`offsite.exchange.ledger`), which accepts one delta per offer and round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr

from offsite.errors import OffsiteError
from offsite.exchange.file_set import Sha256
from offsite.exchange.manifest import Contract, Id, Reach, now
from offsite.exchange.seal import check_seal, sealed
from offsite.exchange.side import SideHashes
from offsite.files import locked, read_json, write_file
from offsite.model.split import Kept
from offsite.model.tensors import parse


class Accepted(BaseModel):
    """A delta the owner has plugged: its id and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    delta: Id
    round: int
    at: datetime


class Pending(BaseModel):
    """A delta that is being plugged: what a killed process leaves behind, and where it wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    delta: Id
    round: int
    out: str
    at: datetime


class OfferRecord(SideHashes):
    """What the owner must remember of one offer.

    Attributes:
        adapter: positions of the adapter blocks in the full model, ascending.
        middle: positions at which the emulator's middle blocks stand.
        recipe: the compression steps, as JSON.
        verbatim_tensors: middle tensors of the full model, with how many of their values left
            unchanged (called ``disclosed_tensors`` in old records).
        side: SHA-256 of each group of side tensors that the offer brings.
        kept: what is left of the linear layers of the middle that were made narrower, by
            ``position.name``.
        round: the round that a delta may answer now.
        accepted: the deltas plugged so far.
        salt: of the offer's commitment to the model; None for offers from before there was one.
        expires: when the offer stops being good; None for never.
        sent: digests of the manifests that the offer was written with.
        pending: the delta that is being plugged, if a process was killed while it did that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    offer: Id
    created: datetime
    adapter: tuple[int, ...]
    emulator_adapter: tuple[int, ...]
    middle: tuple[int, ...]
    total: int
    recipe: list[dict[str, Any]]
    seed: int
    contract: Contract
    verbatim_tensors: Annotated[
        dict[str, int],
        Field(validation_alias=AliasChoices("verbatim_tensors", "disclosed_tensors")),
    ]
    kept: dict[str, Kept] = Field(default_factory=dict)
    round: int = 1
    accepted: tuple[Accepted, ...] = ()
    expires: datetime | None = None
    sent: tuple[Sha256, ...] = ()
    salt: Sha256 | None = None
    pending: Pending | None = Field(default=None, exclude_if=lambda value: value is None)

    def tuned(self, reach: Reach) -> dict[int, int]:
        """For each emulator block that a delta may tune, the block of the model it stands for."""
        if reach == "adapter":
            return dict(zip(self.emulator_adapter, self.adapter, strict=True))
        return dict(enumerate(sorted((*self.adapter, *self.middle))))

    def adapter_tensors(self, path: str) -> dict[str, int]:
        """The adapter's tensors by ``position.name`` in the full model, with their sizes.

        Raises:
            OffsiteError: a damaged record.
        """
        found = {}
        try:
            place = dict(zip(self.emulator_adapter, self.adapter, strict=True))
            for name, entry in self.contract.tensors.items():
                index, _, rest = name.removeprefix(f"{path}.").partition(".")
                found[f"{place[int(index)]}.{rest}"] = math.prod(entry.shape)
        except (KeyError, ValueError) as error:
            raise OffsiteError(
                "The record names blocks that its offer does not have; it is damaged; use a copy."
            ) from error
        return found

    def merge(self, other: OfferRecord) -> OfferRecord:
        """This record with the ledger of another copy of it too: no acceptance is ever lost.

        Raises:
            OffsiteError: the two accepted different deltas for one round.
        """
        known = {entry.delta for entry in self.accepted}
        accepted = (*self.accepted, *(e for e in other.accepted if e.delta not in known))
        if len({entry.round for entry in accepted}) < len(accepted):
            raise OffsiteError(
                f"The offer {self.offer[:8]}... was answered meanwhile by another delta; one delta "
                "per offer and round is accepted, so make a new offer."
            )
        latest = max(self, other, key=lambda entry: entry.round)
        sent = tuple(dict.fromkeys((*self.sent, *other.sent)))
        changes = {"accepted": accepted, "pending": self.pending or other.pending, "sent": sent}
        return latest.model_copy(update=changes)


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
        record: Record = parse(cls, check_seal(read_json(path), path), path)
        record._path = Path(path)
        return record

    def save(self, path: str | Path, *, sent: Mapping[str, str | None] | None = None) -> None:
        """Write the record; when ``path`` holds offers of the same model, add to them.

        From then on the record knows its file, and :func:`offsite.plug` enters deltas there.

        Args:
            path: the file.
            sent: digests of the manifests of offers that are being written, by the offers' ids.

        Raises:
            OffsiteError: ``path`` is the record of another model, accepted another delta, or holds
                an offer with another draw of noise.
        """
        with locked(path):
            offers = {entry.offer: entry for entry in self.offers}
            if Path(path).exists():
                old = Record.load(path)
                if old.fingerprint != self.fingerprint:
                    raise OffsiteError(
                        f"The record '{path}' belongs to another model; name another --record file."
                    )
                kept = {entry.offer: entry for entry in old.offers}
                for entry in self.offers:
                    if entry.offer not in kept:
                        check_one_draw(entry, old.offers)
                mine = {k: v.merge(kept[k]) if k in kept else v for k, v in offers.items()}
                offers = kept | mine
            for offer, digest in (sent or {}).items():
                if digest is not None and digest not in offers[offer].sent:
                    more = {"sent": (*offers[offer].sent, digest)}
                    offers[offer] = offers[offer].model_copy(update=more)
            self.model_copy(update={"offers": tuple(offers.values())}).write(path)
        self._path = Path(path)

    def write(self, path: str | Path) -> None:
        """Put exactly this record, sealed, into ``path``, which the caller has locked."""
        data = sealed(json.loads(self.model_dump_json()))
        write_file(path, json.dumps(data, indent=1) + "\n", private=True)

    def find(self, offer: str) -> OfferRecord:
        """The record of one offer.

        Raises:
            OffsiteError: no offer of that id here: the delta answers somebody else's offer.
        """
        for entry in self.offers:
            if entry.offer == offer:
                return entry
        raise OffsiteError(
            f"The delta answers the offer {offer[:8]}..., which this record does not know; it was "
            "tuned on another offer, so use the record written with that offer."
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
                    "a replayed delta is refused unless you pass --again."
                )
            if accepted.round == round and accepted.delta != delta:
                raise OffsiteError(
                    f"Round {round} of this offer was answered by another delta "
                    f"({accepted.delta[:8]}...); one is accepted per round, so make a new offer."
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


def check_one_draw(offer: OfferRecord, others: Iterable[OfferRecord]) -> None:
    """Refuse an offer whose noise differs in draw or scale from that of another of its model.

    Two scales of one draw give the weights back exactly: ``3 A - 2 B`` for scales 0.4 and 0.6.
    Several draws average out. So all offers with noise must have the same seed and the same steps
    up to the noise.

    Raises:
        OffsiteError: they differ.
    """
    for other in others:
        if None not in (draw(offer), draw(other)) and draw(offer) != draw(other):
            raise OffsiteError(
                f"The record holds the offer {other.offer[:8]}..., whose noise has another scale, "
                "seed or earlier steps: whoever holds both offers can take the noise out. Use the "
                "same seed and the same steps up to the noise, or a recipe without noise."
            )


def draw(offer: OfferRecord) -> tuple[int, list[dict[str, Any]]] | None:
    """What decides the noise in an offer: the seed, and the steps up to it; None without noise."""
    noisy = [i for i, step in enumerate(offer.recipe) if step.get("kind") == "noise"]
    return (offer.seed, offer.recipe[: noisy[-1] + 1]) if noisy else None
