"""Prepare a tuning run: check the data, make the rows, attach the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from offsite.codec import to_json
from offsite.deltas.method import Attached, Method
from offsite.errors import OffsiteError
from offsite.exchange.delta_contents import check_labels, check_options
from offsite.exchange.manifest import Reach, check_clock, now
from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks, with_own_blocks
from offsite.model.heads import attach_head, check_scored, head_tensors
from offsite.model.kind import kind_of_task
from offsite.model.tensors import TORCH, describe
from offsite.tasks.data import rows_of
from offsite.tasks.task import Task
from offsite.training.options import TrainOptions
from offsite.training.precision import choose_precision, weight_dtype
from offsite.training.train import with_lr

Rates = list[tuple[Iterable[nn.Parameter], float]]


@dataclass(frozen=True)
class Prepared:
    """A tuning run that is ready to train.

    Attributes:
        model: the tuner's own copy of the emulator.
        attached: the method on it, and the model that runs with it.
        head: the tensors of a classifier head, which is tuned with every method.
        rates: parameters that have a learning rate of their own.
        rows, eval_rows: what to tune and to score on.
    """

    model: nn.Module
    attached: Attached
    head: Mapping[str, nn.Parameter]
    rates: Rates
    rows: Any
    eval_rows: Any

    @property
    def trainable(self) -> int:
        """How many parameters are tuned."""
        return sum(p.numel() for p in self.attached.model.parameters() if p.requires_grad)


def prepare(
    offer: Offer, data: Any, eval_data: Any, method: Method, task: Task, *,
    options: TrainOptions, own_rates: bool, reach: Reach, counted: Task,
) -> Prepared:  # fmt: skip
    """Make rows, and attach the method to a copy of the emulator.

    Args:
        own_rates: whether parts of a method may have learning rates of their own.
        counted: the task as it makes rows to tune on, which differential privacy counts.

    Raises:
        OffsiteError: unusable data, a method that does not fit the blocks, or a reach that the
            offer or the method does not allow.
    """
    blocks = tuned_blocks(offer, method, reach)
    model = private_copy(offer)
    rows = rows_of(counted, data, offer.processor, model, train=True)
    check_labels(labels := task.labels(rows))
    attach_head(model, labels)
    eval_rows = rows_of(task, eval_data, offer.processor, model, train=False)
    if eval_rows is not None:
        check_scored(labels, task.labels(eval_rows))
    torch.manual_seed(options.seed)
    attached = method.attach(model, blocks)
    head = head_tensors(model)
    for parameter in head.values():
        parameter.requires_grad_(True)
    rates: Rates = [(head.values(), options.head_lr)]
    rates += attached.rates if own_rates else []
    check_fits_contract(attached, offer)
    return Prepared(model, attached, head, rates, rows, eval_rows)


def fill_defaults(
    asked: TrainOptions,
    method: Method,
    dtype: torch.dtype | None,
    device: torch.device,
    private: bool,
) -> tuple[TrainOptions, str, torch.dtype]:
    """The options with every default filled in, their precision, and the frozen weights' dtype.

    Args:
        dtype: of the frozen weights, where it was chosen.
        private: whether the run is differentially private, which by default is in float32.
    """
    precision = choose_precision(asked.precision or ("float32" if private else None), dtype, device)
    filled = replace(with_lr(asked, method.lr), precision=precision)
    return filled, precision, dtype or weight_dtype(precision)


def tuned_blocks(offer: Offer, method: Method, reach: Reach) -> tuple[int, ...]:
    """The blocks of the emulator to tune.

    Raises:
        OffsiteError: all of them, where the offer or the method does not allow that.
    """
    if reach == "adapter":
        return offer.manifest.adapter
    if offer.manifest.contract.reach != "all":
        raise OffsiteError(
            "This offer allows changes to its adapter blocks only; leave out --reach all, or "
            "ask the model's owner for an offer made with --reach all."
        )
    if not method.reaches:
        raise OffsiteError(
            f"The method '{method.kind}' cannot tune all blocks with these options; use lora "
            "without dora, or leave out --reach all."
        )
    return tuple(range(len(get_blocks(offer.model))))


def check_fits_contract(attached: Attached, offer: Offer) -> None:
    """Refuse, before any training, what the offer's owner would refuse after it.

    Raises:
        OffsiteError: more bytes than the offer lets return, or options that are out of all measure.
    """
    entries = describe(attached.tensors())
    size, limit = sum(e.bytes for e in entries.values()), offer.manifest.contract.max_bytes
    if size > limit:
        raise OffsiteError(
            f"The delta would have {size} bytes of tensors, and the offer accepts at most "
            f"{limit}; use a lower rank, size or length."
        )
    check_options(to_json(attached.method), entries)


def check_usable(offer: Offer, task: Task) -> None:
    """Refuse an expired offer, or one for another kind of data.

    Raises:
        OffsiteError: also where this machine's clock is a day or more before the offer was
            made, so that nothing can be said of its expiry.
    """
    expires = offer.manifest.expires
    check_clock(offer.manifest.created, expires)
    if expires is not None and expires < now():
        raise OffsiteError(
            f"The offer expired at {expires.isoformat()}; ask its owner for a new one."
        )
    check_kind(offer.manifest.task, task)


def check_kind(offered: str, task: Task) -> None:
    """Refuse data that the models of an offer's task cannot read.

    Raises:
        OffsiteError: pictures for a model of text, or text for a model of pictures.
    """
    if task.auto_class != kind_of_task(offered).auto_class:
        raise OffsiteError(
            f"The offer is for the task '{offered}', and the data is for '{task.name}'; give data "
            "for the offer's task, or ask for another offer."
        )


def private_copy(offer: Offer) -> nn.Module:
    """The offer's model with adapter blocks of its own in float32, so that tuning leaves it alone.

    The other blocks are modules of their own around the offer's tensors.
    """
    copied: nn.Module = with_own_blocks(offer.model, offer.manifest.adapter)
    return copied


def to_offer_dtypes(tensors: Mapping[str, torch.Tensor], offer: Offer) -> dict[str, torch.Tensor]:
    """Tensors of the offer in the offer's own dtype; a method's other tensors as they are."""
    contract = offer.manifest.contract
    wanted = {name: entry.dtype for name, entry in (contract.tensors | contract.head).items()}
    return {
        name: (t.to(TORCH[wanted[name]]) if name in wanted else t).detach().cpu().clone()
        for name, t in tensors.items()
    }
