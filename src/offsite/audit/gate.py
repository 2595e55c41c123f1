"""A gate before an offer is written: refuse it if attackers recover too much of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from offsite.audit.offer import audit_offer
from offsite.audit.recovered import OfferAudit, check_recovered
from offsite.audit.training import Effort
from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.checkpoint import Checkpoint, load_model
from offsite.tasks.data import TaskData


@dataclass(frozen=True)
class Gate:
    """What an owner allows attackers to recover, and how hard they try.

    Attributes:
        most: the largest share of the distance to the full model that may be recovered.
        data: public text or pictures, which attackers have too.
        effort: what they spend.
        earlier: folders of offers of the same record, which are combined with the new one.
    """

    most: float
    data: TaskData
    effort: Effort
    earlier: Sequence[Path] = ()

    def check(
        self,
        full: Checkpoint,
        offer: Offer,
        record: Record,
        *,
        path: Path,
        device: torch.device,
        say: Callable[[str], None],
    ) -> OfferAudit:
        """Attack an offer that is not written yet.

        Args:
            full: the owner's model.
            record: the record of the new offer; ``path`` is the file of earlier ones, if there is.

        Raises:
            OffsiteError: attackers recover more than ``most``.
        """
        if path.exists():
            offers = (*Record.load(path).offers, *record.offers)
            record = record.model_copy(update={"offers": offers})
        model = load_model(full.name, record.auto_class, dtype=torch.float32)
        found = audit_offer(
            model, offer, record, self.data.rows(offer.processor, offer.model), self.data.task,
            device=device, effort=self.effort, earlier=[Offer.load(p) for p in self.earlier],
            say=say,
        )  # fmt: skip
        check_recovered(found, self.most)
        return found


def make_gate(
    most: float | None, data: TaskData | None, effort: Effort, earlier: Sequence[Path]
) -> Gate | None:
    """The gate that an owner asked for; None without one.

    Raises:
        OffsiteError: a limit without data to attack with.
    """
    if most is None:
        return None
    if data is None:
        raise OffsiteError(
            "--max-recovered attacks the offer before it is written and needs public data for "
            "that; give --audit-data."
        )
    return Gate(most, data, effort, tuple(earlier))
