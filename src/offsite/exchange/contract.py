"""The return contract of an offer: how it is written, and how a delta is checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.exchange.bounds import OutOfBounds
from offsite.exchange.delta import Delta
from offsite.exchange.manifest import Contract, Reach
from offsite.exchange.offer_record import OfferRecord
from offsite.exchange.side import divide, readable, sides_of
from offsite.model.blocks import block_parameters, get_blocks
from offsite.model.heads import check_head, head_entries
from offsite.model.layers import effective_weights
from offsite.model.tensors import TensorEntry


def make_contract(model: nn.Module, adapter: Sequence[int], reach: Reach = "adapter") -> Contract:
    """What a delta may bring back: tensors of the adapter blocks, within generous bounds.

    For an image model that includes a classifier head. With ``reach`` ``all`` the bounds are those
    of all blocks, where integer weights count as the floating-point ones that they stand for.
    """
    tensors, size, squares = block_parameters(model, adapter), 0, 0.0
    for weight in effective_weights(get_blocks(model)) if reach == "all" else tensors.values():
        size += weight.numel()
        squares += float(weight.detach().float().pow(2).sum())
    return Contract(
        tensors={name: TensorEntry.of(t) for name, t in tensors.items()},
        max_bytes=8 * size + 2**20,
        max_norm=10 * squares**0.5 + 100,
        head=head_entries(model),
        reach=reach,
    )


def check_contract(delta: Delta, entry: OfferRecord) -> None:
    """Compare what a delta declares with its offer, reading no tensor.

    Raises:
        OffsiteError: other adapter blocks or a wider reach than offered, a head that is not the
            offer's, or more bytes than allowed.
    """
    declared = delta.manifest
    head = divide(declared.tensors, declared.head)[1]
    if len(head) < len(declared.head):
        raise OffsiteError(
            "The delta names a head that is not among its tensors; ask its sender to make it again."
        )
    check_entries(head, check_head(head, declared.labels, entry.contract.head))
    if declared.adapter != entry.emulator_adapter:
        raise OffsiteError(
            f"The delta tunes the blocks {list(declared.adapter)}, but the offer's adapter "
            f"is {list(entry.emulator_adapter)}; ask its sender to tune again on this offer."
        )
    if declared.reach == "all" and entry.contract.reach != "all":
        raise OffsiteError(
            "The delta tunes all blocks, but its offer lets only the adapter blocks change; tune "
            "again without --reach all, or make an offer with --reach all."
        )
    size = delta.bytes - sum(e.bytes for e in head.values())
    if size > entry.contract.max_bytes:
        raise OffsiteError(
            f"The delta has {size} bytes of tensors, but its offer allows "
            f"{entry.contract.max_bytes}; tune again with a smaller method, such as a lower rank."
        )


def check_side(model: nn.Module, name: str, entry: OfferRecord) -> None:
    """Check that a group of side tensors of the full model is the one that the offer had.

    Raises:
        OffsiteError: there is none, or another one.
    """
    said, present = readable(name), sides_of(model).get(name)
    if name not in entry.side:
        raise OffsiteError(
            f"The delta was tuned with a {said}, but its offer shipped no {said}, so it cannot "
            "come from that offer; plug it with the record of its own offer."
        )
    if present is None or present.hash != entry.side[name]:
        raise OffsiteError(
            f"The delta needs the {said} that its offer shipped; give it with "
            f"--{name.replace('_', '-')} (the folder of the offer will do)."
        )


def check_norm(tensors: Mapping[str, torch.Tensor], contract: Contract) -> None:
    """Refuse a delta whose values are far larger than the adapter's own.

    Raises:
        OutOfBounds: the L2 norm of all floating-point tensors exceeds the contract's bound.
    """
    squares = sum(float(t.float().pow(2).sum()) for t in tensors.values() if t.is_floating_point())
    if squares**0.5 > contract.max_norm:
        raise OutOfBounds(
            f"The delta's values have norm {squares**0.5:.3g}; its offer allows "
            f"{contract.max_norm:.3g}, so tune again with a lower learning rate."
        )


def check_entries(given: Mapping[str, TensorEntry], expected: Mapping[str, TensorEntry]) -> None:
    """Compare the tensors that a delta declares with those that the contract expects.

    A floating-point tensor may have another precision, but F64 only if the offer has it.

    Raises:
        OffsiteError: a tensor that is unexpected, missing or of another shape.
    """
    for name in sorted(given):
        if name not in expected:
            raise OffsiteError(
                f"The delta has a tensor '{name}' that its method does not produce here; "
                "only the adapter blocks of the offer may change, so ask its sender to make it "
                "again."
            )
        if given[name].shape != expected[name].shape:
            raise OffsiteError(
                f"The tensor '{name}' of the delta has shape {list(given[name].shape)}, but the "
                f"contract asks for {list(expected[name].shape)}; ask its sender to make it again."
            )
        floats = ("F32", "BF16", "F16")
        own = expected[name].dtype
        wanted = tuple({*floats, own}) if own in (*floats, "F64") else (own,)
        if given[name].dtype not in wanted:
            raise OffsiteError(
                f"The tensor '{name}' of the delta is {given[name].dtype}, but the contract asks "
                f"for {' or '.join(sorted(wanted))}; ask its sender to make it again."
            )
    missing = sorted(set(expected) - set(given))
    if missing:
        raise OffsiteError(
            f"The delta lacks {len(missing)} tensors, first '{missing[0]}'; "
            "ask its sender to make it again."
        )
