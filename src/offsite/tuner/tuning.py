"""The data owner's side: tune the adapter of an offer on private data.

This path needs nothing but the offer: it never imports the compressors or the owner's side. Dropout
acts only in blocks that train.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.codec import to_json
from offsite.deltas.method import Attached, Method
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta, new_delta
from offsite.exchange.manifest import Reach
from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks
from offsite.model.heads import labels_of, load_head
from offsite.tasks.data import identity_of
from offsite.tasks.task import Evaluation, Task
from offsite.tasks.text.causal import CausalText
from offsite.training.devices import pick_device
from offsite.training.dp import PrivacyBudget, train_dp
from offsite.training.float8 import in_float8
from offsite.training.guarantee import Guarantee
from offsite.training.identity import Identity
from offsite.training.options import TrainOptions
from offsite.training.precision import in_precision
from offsite.training.resume import same_run
from offsite.training.sharding import sharded, should_shard
from offsite.training.train import History, train
from offsite.tuner.limits import Limits
from offsite.tuner.preparing import Prepared, check_usable, fill_defaults, prepare, to_offer_dtypes


@dataclass(frozen=True)
class Tuned:
    """The outcome of tuning: the delta, the tuned emulator, how training went, its score.

    ``trainable`` counts the parameters that were tuned; ``precision`` is that of the computation.
    """

    delta: Delta
    attached: Attached
    history: History
    evaluation: Evaluation | None
    trainable: int
    precision: str

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
    if budget is not None and resume:
        raise OffsiteError(
            "A run with differential privacy saves no checkpoints, so it cannot be resumed; run "
            "it again without --resume."
        )
    asked, device = options or TrainOptions(), pick_device(device)
    options, precision, frozen = fill_defaults(asked, method, dtype, device, budget is not None)
    counted = task if budget is None else task.one_by_one()
    ready = prepare(
        offer, data, eval_data, method, task, options=options, own_rates=asked.lr is None,
        reach=reach, counted=counted,
    )  # fmt: skip

    def run() -> Identity:
        return Identity.of(
            offer=offer.manifest.id, method=to_json(method), reach=reach, data=identity_of(data),
            eval_data=identity_of(eval_data), task=task.identity(), dtype=str(frozen),
            options=options.identity(),
        )  # fmt: skip

    runner, home = ready.attached.model, next(offer.model.parameters())
    trainable, limits = ready.trainable, Limits(ready, offer, reach)
    work, shard = None if budget else work, should_shard(options, runner, frozen, device)
    casting = in_float8(runner, device) if precision == "float8" else nullcontext()
    try:
        with casting, in_precision(runner, frozen, device, shard), same_run(work, run, resume):
            history, dp = fit(ready, counted, options, budget, device, work, resume, limits)
            changed, head = delta_tensors(ready, offer)
            limits.check()
        restore_dtypes(ready, offer, home.dtype)
        evaluation = None
        if ready.eval_rows is not None:
            with sharded(runner, device) if shard else nullcontext():
                evaluation = task.evaluate(runner.to(device), ready.eval_rows)
    finally:
        runner.to(home.device)  # its frozen blocks are the offer's own
    delta = new_delta(
        offer.manifest, changed, to_json(method), peft_config=ready.attached.peft_config(),
        head=head, labels=labels_of(ready.model) if head else (), reach=reach, dp=dp,
    )  # fmt: skip
    return Tuned(delta, ready.attached, history, evaluation, trainable, precision)


def fit(
    ready: Prepared, task: Task, options: TrainOptions, budget: PrivacyBudget | None,
    device: torch.device, work: Path | None, resume: bool, limits: Limits,
) -> tuple[History, Guarantee | None]:  # fmt: skip
    """Train what is prepared; with a budget, also say which guarantee the run has."""
    runner, rows = ready.attached.model, ready.rows
    if budget is not None:
        return train_dp(
            runner, rows, loss=task.loss, collate=task.collate, options=options, budget=budget,
            rates=ready.rates, device=device,
        )  # fmt: skip
    history = train(
        runner, rows, loss=task.loss, collate=task.collate, options=options, rates=ready.rates,
        device=device, eval_data=ready.eval_rows, work=work, resume=resume,
        steady=True, callbacks=[limits],
    )  # fmt: skip
    return history, None


def delta_tensors(ready: Prepared, offer: Offer) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors of the delta in the offer's precision, and the names of those of a head.

    The tuned model then holds these tensors too: the score is that of the delta.
    """
    tensors = to_offer_dtypes(ready.attached.tensors(), offer)
    ready.attached.load(tensors)
    head = to_offer_dtypes(ready.head, offer)
    load_head(ready.head, head)
    return drop_unchanged(tensors, offer) | head, tuple(head)


def restore_dtypes(ready: Prepared, offer: Offer, dtype: torch.dtype) -> None:
    """Hold the adapter blocks and a head in the offer's own precision again."""
    blocks = get_blocks(ready.model)
    own = [p for i in offer.manifest.adapter for p in blocks[i].parameters()]
    for parameter in (*own, *ready.head.values()):
        parameter.data = parameter.data.to(dtype)


def drop_unchanged(tensors: dict[str, torch.Tensor], offer: Offer) -> dict[str, torch.Tensor]:
    """Only what changed is sent: tensors equal to the offer's own are left out."""
    own = dict(offer.model.named_parameters())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in own or not torch.equal(own[name].detach().cpu().to(tensor.dtype), tensor)
    }
