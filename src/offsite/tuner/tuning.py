"""The data owner's side: tune the adapter of an offer on private data.

This path needs nothing but the offer: it never imports the compressors or the owner's side.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.codec import to_json
from offsite.deltas.method import Attached, Method
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta, check_labels, check_options, new_delta
from offsite.exchange.manifest import Reach, now
from offsite.exchange.offer import Offer
from offsite.model.blocks import alias, assemble, get_blocks
from offsite.model.checkpoint import DTYPES as COMPUTED
from offsite.model.checkpoint import pick_device
from offsite.model.heads import give_head, head_tensors, labels_of, set_head
from offsite.model.kind import kind_of_task
from offsite.model.tensors import TORCH, describe
from offsite.tasks.data import identity_of, rows_of
from offsite.tasks.task import Evaluation, Task
from offsite.tasks.text.causal import CausalText
from offsite.training.dp import PrivacyBudget, train_dp
from offsite.training.guarantee import Guarantee
from offsite.training.identity import Identity
from offsite.training.options import TrainOptions
from offsite.training.precision import choose, held
from offsite.training.resume import same_run
from offsite.training.train import History, train, with_lr


@dataclass(frozen=True)
class Tuned:
    """The outcome of tuning: the delta, the tuned emulator, how training went, its score.

    ``trainable`` counts the parameters that were tuned.
    """

    delta: Delta
    attached: Attached
    history: History
    evaluation: Evaluation | None
    trainable: int

    @property
    def model(self) -> nn.Module:
        """The tuned emulator."""
        return self.attached.model


def tune(
    offer: Offer,
    data: Any,
    method: Method | None = None,
    *,
    options: TrainOptions | None = None,
    eval_data: Any = None,
    task: Task | None = None,
    reach: Reach = "adapter",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    budget: PrivacyBudget | None = None,
    work: Path | None = None,
    resume: bool = False,
) -> Delta:
    """Tune the adapter of ``offer`` on ``data`` and return the delta; see :func:`run_tune`."""
    return run_tune(
        offer, data, method, options=options, eval_data=eval_data, task=task, reach=reach,
        device=device, dtype=dtype, budget=budget, work=work, resume=resume,
    ).delta  # fmt: skip


def run_tune(
    offer: Offer,
    data: Any,
    method: Method | None = None,
    *,
    options: TrainOptions | None = None,
    eval_data: Any = None,
    task: Task | None = None,
    reach: Reach = "adapter",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    budget: PrivacyBudget | None = None,
    work: Path | None = None,
    resume: bool = False,
) -> Tuned:
    """Tune the adapter of an offer on private data.

    Args:
        offer: a loaded offer; its model is not changed, and the tuned one ends where it is.
        data: a path, rows the task made, or a :class:`~offsite.tasks.data.TaskData`.
        method: what is tuned in the adapter blocks; all of them by default.
        eval_data: like ``data``; scored after tuning, and during it for curves and early stopping.
        task: the kind of data; by default the offer's.
        reach: ``all`` tunes every block of the emulator, where the offer allows it and the method
            adds to weights (lora without dora); by default only the adapter blocks.
        dtype: of the frozen weights while tuning; None for that of ``options.precision``. What is
            tuned is held in float32 in any case.
        budget: tune with differential privacy within this budget, in float32; every example of
            ``data`` is then a row of its own, and such a run cannot be resumed. None tunes without
            it.
        work, resume: see :func:`offsite.training.train.train`.

    Raises:
        OffsiteError: an expired offer, unusable data, a method that does not fit the blocks, or a
            reach that the offer or the method does not allow.
    """
    method, task = method or Full(), task or CausalText()
    check_usable(offer, task)
    asked = options or TrainOptions()
    device = pick_device(None if device is None else str(device))
    precision = choose(asked.precision or ("float32" if budget else None), dtype, device)
    frozen = dtype or COMPUTED[precision]
    options = replace(with_lr(asked, method.lr), precision=precision)
    blocks = tuned_blocks(offer, method, reach)
    model = private_copy(offer, blocks)
    counted = task if budget is None else one_example_a_row(task, resume)
    rows = rows_of(counted, data, offer.processor, model, train=True)
    check_labels(labels := task.labels(rows))
    give_head(model, labels)
    eval_rows = rows_of(task, eval_data, offer.processor, model, train=False)
    torch.manual_seed(options.seed)
    attached = method.attach(model, blocks)
    head = head_tensors(model)
    for parameter in head.values():
        parameter.requires_grad_(True)
    rates: list[tuple[Iterable[nn.Parameter], float]] = [(head.values(), options.head_lr)]
    rates += attached.rates if asked.lr is None else []
    fits_contract(attached, offer)

    def run() -> Identity:
        return Identity.of(
            offer=offer.manifest.id,
            method=to_json(method),
            reach=reach,
            data=identity_of(data),
            eval_data=identity_of(eval_data),
            task=task.identity(),
            dtype=str(frozen),
            options=options.identity(),
        )

    dp: Guarantee | None = None
    runner = attached.model
    trainable = sum(p.numel() for p in runner.parameters() if p.requires_grad)
    home = next(offer.model.parameters())
    try:
        with (
            held(runner, frozen, device),
            same_run(None if budget else work, run, resume),
        ):
            if budget is None:
                history = train(
                    runner, rows, loss=task.loss, collate=task.collate, options=options,
                    rates=rates, device=device, eval_data=eval_rows, work=work, resume=resume,
                )  # fmt: skip
            else:
                history, dp = train_dp(
                    runner, rows, loss=task.loss, collate=task.collate, options=options,
                    budget=budget, rates=rates, device=device,
                )  # fmt: skip
            tensors = rounded(attached.tensors(), offer)
            attached.load(tensors)  # score what travels, not what was more precise
            new = rounded(head, offer)
            set_head(head, new)
        changed = drop_unchanged(tensors, offer) | new
        own = [p for i in offer.manifest.adapter for p in get_blocks(model)[i].parameters()]
        for parameter in (*own, *head.values()):
            parameter.data = parameter.data.to(home.dtype)
        evaluation = None if eval_rows is None else task.evaluate(runner.to(device), eval_rows)
    finally:
        runner.to(home.device)  # its frozen blocks are the offer's own
    delta = new_delta(
        offer.manifest,
        changed,
        to_json(method),
        peft_config=attached.peft_config(),
        head=tuple(new),
        labels=labels_of(model) if new else (),
        reach=reach,
        dp=dp,
    )
    return Tuned(delta, attached, history, evaluation, trainable)


def tuned_blocks(offer: Offer, method: Method, reach: Reach) -> tuple[int, ...]:
    """The blocks of the emulator to tune.

    Raises:
        OffsiteError: all of them, where the offer or the method does not allow that.
    """
    if reach == "adapter":
        return offer.manifest.adapter
    if offer.manifest.contract.reach != "all":
        raise OffsiteError(
            "This offer lets only its adapter blocks change; leave out --reach all, or ask the "
            "model's owner for an offer that was made with --reach all."
        )
    if not method.reaches:
        raise OffsiteError(
            f"The method '{method.kind}' cannot tune all blocks with these options; use lora "
            "without dora, or leave out --reach all."
        )
    return tuple(range(len(get_blocks(offer.model))))


def one_example_a_row(task: Task, resume: bool) -> Task:
    """The task with rows that differential privacy can count.

    Raises:
        OffsiteError: a run that is to be resumed.
    """
    if resume:
        raise OffsiteError(
            "A run with differential privacy is not saved on its way, so it cannot be resumed; run "
            "it again without --resume."
        )
    return task.one_by_one()


def fits_contract(attached: Attached, offer: Offer) -> None:
    """Refuse, before any training, what the offer's owner would refuse after it.

    Raises:
        OffsiteError: more bytes than the offer lets return, or options that are out of all measure.
    """
    entries = describe(attached.tensors())
    size, limit = sum(e.bytes for e in entries.values()), offer.manifest.contract.max_bytes
    if size > limit:
        raise OffsiteError(
            f"The delta would have {size} bytes of tensors, but the offer lets {limit} return; use "
            "a lower rank, size or length."
        )
    check_options(to_json(attached.method), entries)


def check_usable(offer: Offer, task: Task) -> None:
    """Refuse an expired offer, or one for another kind of data."""
    expires = offer.manifest.expires
    if expires is not None and expires < now():
        raise OffsiteError(
            f"The offer expired at {expires.isoformat()}; ask its owner for a new one."
        )
    if task.auto_class != kind_of_task(offer.manifest.task).auto_class:
        raise OffsiteError(
            f"The offer is for the task '{offer.manifest.task}', which data for '{task.name}' does "
            "not fit."
        )


def private_copy(offer: Offer, tuned: Sequence[int] = ()) -> nn.Module:
    """The offer's model with adapter blocks of its own in float32, so that tuning leaves it alone.

    Other ``tuned`` blocks have modules of their own around the offer's tensors; all else is shared.
    """
    blocks = list(get_blocks(offer.model))
    for index in {*tuned, *offer.manifest.adapter}:
        own = index in offer.manifest.adapter
        blocks[index] = copy.deepcopy(blocks[index]).float() if own else alias(blocks[index])
    copied: nn.Module = assemble(offer.model, blocks, range(len(blocks)))
    return copied


def rounded(tensors: Mapping[str, torch.Tensor], offer: Offer) -> dict[str, torch.Tensor]:
    """Tensors of the offer in the offer's own dtype; a method's further numbers as they are."""
    contract = offer.manifest.contract
    wanted = {name: entry.dtype for name, entry in (contract.tensors | contract.head).items()}
    return {
        name: (t.to(TORCH[wanted[name]]) if name in wanted else t).detach().cpu().clone()
        for name, t in tensors.items()
    }


def drop_unchanged(tensors: dict[str, torch.Tensor], offer: Offer) -> dict[str, torch.Tensor]:
    """Only what changed travels: tensors equal to the offer's own are left out."""
    own = dict(offer.model.named_parameters())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in own or not torch.equal(own[name].detach().cpu().to(tensor.dtype), tensor)
    }
