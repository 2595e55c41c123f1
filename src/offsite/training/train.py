"""The training loop of tuning, distillation and full fine-tuning.

It is ``transformers.Trainer`` around whatever parameters require gradients, so mixed precision,
accumulation, checkpointing, torchrun, trackers, early stopping and resuming are the ecosystem's.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from offsite.errors import OffsiteError
from offsite.model.quiet import quiet
from offsite.training.checkpoints import Sealing, newest_checkpoint, saving
from offsite.training.compiling import compiled, should_compile
from offsite.training.devices import accelerate_on
from offsite.training.memory import FittingTrainer
from offsite.training.options import TrainOptions
from offsite.training.precision import with_precision
from offsite.training.processes import meet, process_count
from offsite.training.recording import Recorder, can_record
from offsite.training.resume import Interrupted
from offsite.training.sharding import shard_root
from offsite.training.tunable import Loss, Tunable
from offsite.training.watch import Watch


@dataclass(frozen=True)
class History:
    """What a training run did.

    Attributes:
        steps: optimiser steps from the start.
        seconds, loss: time and mean loss since the last resume.
        points: ``step`` with ``loss`` or ``eval_loss``, from the start.
    """

    steps: int
    seconds: float
    loss: float
    points: tuple[dict[str, float], ...]


def train(
    model: nn.Module,
    data: Dataset[Any],
    *,
    loss: Loss,
    collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]],
    options: TrainOptions,
    device: torch.device,
    rates: Sequence[tuple[Iterable[nn.Parameter], float]] = (),
    eval_data: Dataset[Any] | None = None,
    work: Path | None = None,
    resume: bool = False,
    text: str = "tuning",
    divisible: bool = True,
    steady: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> History:
    """Train the parameters of ``model`` that require gradients, in place.

    Args:
        model: any module; it is moved to ``device`` and left there in evaluation mode.
        loss: ``(model, batch, number of targets or None) -> scalar``.
        rates: parameters that learn at another rate than ``options.lr``, and which.
        eval_data: evaluated now and then with ``loss`` (for curves and early stopping).
        work: folder for resumable checkpoints and tracker logs; None keeps nothing.
        resume: continue from the newest checkpoint in ``work`` that verifies, or from the start; on
            CPU the final weights are then bit-equal to those of an uninterrupted run.
        divisible: whether the loss of a batch is the sum of the losses of its parts, so that a
            batch that does not fit into memory may be computed in parts.
        steady: whether all batches of one shape make the same calls, so that a GPU may replay them.
        callbacks: called at every step, like the progress bar.

    Raises:
        OffsiteError: nothing to train, or nothing to resume.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is in ``work``.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise OffsiteError("There is nothing to train: no parameter requires gradients.")
    if options.patience and eval_data is None:
        raise OffsiteError("Early stopping needs evaluation data; give it with --eval-data.")
    checkpoint = _checkpoint(work) if resume else None
    total = total_steps(options, len(data))  # type: ignore[arg-type]
    options = with_precision(options, device)
    compiling = should_compile(options.compile, total * options.accumulate, device)
    with (
        tempfile.TemporaryDirectory() as scratch,
        accelerate_on(device),
        compiled(model, compiling),
    ):
        shard_root(tunable := Tunable(model.to(device), loss))
        trainer = FittingTrainer(
            model=tunable,
            args=_arguments(options, work, scratch, total, device, eval_data),
            train_dataset=data,
            eval_dataset=eval_data,
            data_collator=collate,
            callbacks=[EarlyStoppingCallback(options.patience)] if options.patience else [],
        )
        trainer.divisible = divisible
        if steady and can_record(options, device):
            trainer.recorder = Recorder([p for _, p in tunable.trained])
        trainer.remove_callback(PrinterCallback)
        for parameters, lr in rates:
            _own_rate(trainer, list(parameters), lr)
        watch = Watch(text, work is not None)
        for callback in (watch, Sealing(), *callbacks):
            trainer.add_callback(callback)
        try:
            with quiet(), saving(work), one_thread():
                result = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        finally:
            watch.close()
    model.eval()
    if watch.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"Interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}; run "
            "the same command with --resume to continue."
        )
    points, seconds = _points(trainer.state.log_history), result.metrics["train_runtime"]
    return History(trainer.state.global_step, seconds, result.training_loss, points)


def one_thread() -> AbstractContextManager[Any]:
    """Within the ``with``, a process that trains alone runs both passes of a step in one thread.

    cuBLAS keeps memory to work in for every thread: 64 MiB on an H100.
    """
    return torch.autograd.set_multithreading_enabled(process_count() > 1)


def _checkpoint(work: Path | None) -> Path | None:
    """The newest checkpoint that verifies; None to begin at the start.

    Raises:
        OffsiteError: there is no folder of an interrupted run.
    """
    if work is None or not work.is_dir():
        raise OffsiteError(f"There is nothing to resume in '{work}'; run without --resume.")
    return newest_checkpoint(work)


def total_steps(options: TrainOptions, rows: int) -> int:
    """Optimiser steps of a run over so many rows, which all processes share."""
    batch = options.batch_size * process_count()
    each = math.ceil(math.ceil(rows / batch) / options.accumulate)
    return options.steps or max(1, math.ceil(each * options.epochs))


def _points(log: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], ...]:
    """The losses of a run by their step."""
    return tuple(
        {key: float(value) for key, value in point.items() if key in ("step", "loss", "eval_loss")}
        for point in log
        if "loss" in point or "eval_loss" in point
    )


def _own_rate(trainer: Trainer, parameters: list[nn.Parameter], lr: float) -> None:
    """Move parameters into groups of their own in the optimiser, with another learning rate."""
    if not parameters:
        return
    optimizer = trainer.create_optimizer()
    moved = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):  # one has weight decay, the other none
        own = [p for p in group["params"] if id(p) in moved]
        group["params"] = [p for p in group["params"] if id(p) not in moved]
        if own:
            optimizer.add_param_group({**group, "params": own, "lr": lr})


def _arguments(
    options: TrainOptions,
    work: Path | None,
    scratch: str,
    total: int,
    device: torch.device,
    eval_data: Dataset[Any] | None,
) -> TrainingArguments:
    every = options.eval_every or max(1, total // 10)
    missing = set(options.report_to) - set(known := get_available_reporting_integrations())
    if missing:
        raise OffsiteError(
            f"There is no tracker '{min(missing)}' here; those installed are: "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    meet()  # the arguments form the group of torchrun's processes
    arguments = TrainingArguments(
        output_dir=str(work or scratch),
        max_steps=options.steps or -1,
        num_train_epochs=options.epochs,
        learning_rate=options.lr or 1e-4,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        warmup_steps=round(options.warmup * total),
        lr_scheduler_type=options.schedule,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=options.precision in ("bfloat16", "float8"),
        fp16=options.precision == "float16",
        **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
        logging_steps=max(1, total // 50),
        logging_nan_inf_filter=False,  # it would wait for the device after every batch
        eval_strategy="steps" if eval_data is not None else "no",
        eval_steps=every,
        save_strategy="steps" if work is not None or options.patience else "no",
        save_steps=every if options.patience else options.save_every,
        save_total_limit=2,
        load_best_model_at_end=bool(options.patience),
        metric_for_best_model="loss" if options.patience else None,
        greater_is_better=False if options.patience else None,
        report_to=list(options.report_to) or "none",
        seed=options.seed,
        data_seed=options.seed,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        prediction_loss_only=True,
        use_cpu=device.type == "cpu",
        ddp_broadcast_buffers=False,  # they do not train; packed weights of a frozen block are some
        dataloader_pin_memory=device.type != "cpu",
        accelerator_config={"non_blocking": device.type != "cpu"},
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs of one host: torchrun, not threads
    return arguments


def with_lr(options: TrainOptions, lr: float) -> TrainOptions:
    """The options with ``lr`` filled in where the caller left it open."""
    return options if options.lr is not None else replace(options, lr=lr)
