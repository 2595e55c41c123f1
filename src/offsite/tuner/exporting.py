"""Export a delta of a merging method as plain tensors, for tools that do not know the method."""

from __future__ import annotations

from offsite.codec import to_json
from offsite.deltas import parse_method
from offsite.deltas.merging import merged_tensors
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError, require
from offsite.exchange.delta import Delta, new_delta
from offsite.exchange.offer import Offer
from offsite.exchange.side import divide


def plain_delta(delta: Delta, offer: Offer) -> Delta:
    """The same change as a plain delta of method ``full``: new values of the tensors it changes.

    Raises:
        OffsiteError: another offer, a method that does not merge, or a delta that tunes all blocks.
    """
    require(
        delta.manifest.parent == offer.manifest.id,
        "The delta answers another offer; give the offer that it was tuned on.",
    )
    if delta.manifest.reach == "all":
        raise OffsiteError(
            "The delta tunes all blocks, and the emulator's middle blocks have no place in the "
            "full model; send the delta as it is."
        )
    method, adapter = parse_method(delta.manifest.method), offer.manifest.adapter
    changes, head = divide(delta.values(), delta.manifest.head)
    values = merged_tensors(offer.model, method, adapter, changes)
    own = dict(offer.model.named_parameters())
    plain = {name: value.to(own[name].dtype) for name, value in values.items()}
    plain |= head
    labels = delta.manifest.labels
    return new_delta(
        offer.manifest, plain, to_json(Full()), head=delta.manifest.head, labels=labels
    )
