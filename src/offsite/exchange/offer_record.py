"""The entry of one offer in the record, and what two offers must have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from offsite.errors import OffsiteError
from offsite.exchange.file_set import Sha256
from offsite.exchange.manifest import Contract, Id, Reach
from offsite.exchange.side import SideHashes
from offsite.model.split import Kept


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
        middle: positions of the emulator's middle blocks.
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
        """For each emulator block that a delta may tune, the block of the model in its place."""
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
                "The record is damaged: it names blocks that its offer does not have; restore "
                "it from a copy."
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
                f"Another delta of the offer {self.offer[:8]}... was accepted meanwhile, and "
                "each offer and round accepts one; make a new offer."
            )
        latest = max(self, other, key=lambda entry: entry.round)
        sent = tuple(dict.fromkeys((*self.sent, *other.sent)))
        changes = {"accepted": accepted, "pending": self.pending or other.pending, "sent": sent}
        return latest.model_copy(update=changes)


def check_same_noise(offer: OfferRecord, others: Iterable[OfferRecord]) -> None:
    """Refuse an offer whose noise differs in draw or scale from that of another of its model.

    Two scales of one draw give the weights back exactly: ``3 A - 2 B`` for scales 0.4 and 0.6.
    Several draws average out. So all offers with noise must have the same seed and the same steps
    up to the noise.

    Raises:
        OffsiteError: they differ.
    """
    mine = noise_identity(offer)
    for other in others:
        if None not in (mine, theirs := noise_identity(other)) and mine != theirs:
            raise OffsiteError(
                f"The record holds the offer {other.offer[:8]}..., whose noise has another scale, "
                "seed or earlier steps: whoever holds both offers can take the noise out. Use the "
                "same seed and the same steps up to the noise, or a recipe without noise."
            )


def noise_identity(offer: OfferRecord) -> tuple[int, list[dict[str, Any]]] | None:
    """What decides the noise in an offer: the seed, and the steps up to it; None without noise."""
    noisy = [i for i, step in enumerate(offer.recipe) if step.get("kind") == "noise"]
    return (offer.seed, offer.recipe[: noisy[-1] + 1]) if noisy else None
