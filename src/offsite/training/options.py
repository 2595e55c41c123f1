"""Training options: the same for Python, files and the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from offsite.errors import OffsiteError, check_seed

PRECISIONS = ("float32", "bfloat16", "float16", "float8")
IDLE = ("report_to", "save_every", "compile", "shard")  # options that have no part in the result


@dataclass(frozen=True)
class TrainOptions:
    """How long and how to train.

    On the command line each field is an option, with the words below as its help.

    Attributes:
        steps: Optimiser steps; by default ``epochs`` decides.
        epochs: Passes over the data; ignored if ``steps`` is given.
        lr: Peak learning rate of AdamW; by default that of the method that is tuned.
        head_lr: Peak learning rate of a classifier head. It is higher than that of the blocks,
            because a head starts from zeros.
        batch_size: Rows per step and process.
        accumulate: Batches per optimiser step.
        warmup: Share of the steps in which the learning rate rises; ``schedule`` rules the rest.
        schedule: How the learning rate falls: cosine, linear, constant or another name of
            transformers.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Largest norm of the gradient; a larger one is scaled down to it.
        precision: Precision of the computation: float32, bfloat16, float16 or float8; by default
            bfloat16 on a GPU that supports it, else float32. float8 multiplies in float8 in frozen
            blocks and uses bfloat16 elsewhere: faster on recent GPUs, and less exact. Trained
            parameters are always held in float32.
        compile: Compile the blocks; by default on a GPU, if the run is long enough to gain time.
        gradient_checkpointing: Compute activations a second time in the backward pass, to save
            memory.
        shard: Divide the frozen blocks among the processes of torchrun; by default if they would
            take more than half of a GPU.
        patience: Stop after this many evaluations without a lower loss; needs evaluation data.
        save_every: Steps between the checkpoints that ``resume`` continues from.
        eval_every: Steps between evaluations; by default a tenth of the run.
        report_to: Where to log the loss, such as tensorboard or wandb.
        seed: Seed of every random choice.
    """

    steps: int | None = None
    epochs: float = 1.0
    lr: float | None = None
    head_lr: float = 1e-2
    batch_size: int = 8
    accumulate: int = 1
    warmup: float = 0.06
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str | None = None
    compile: bool | None = None
    gradient_checkpointing: bool = False
    shard: bool | None = None
    patience: int | None = None
    save_every: int = 100
    eval_every: int | None = None
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            (self.steps is not None and self.steps < 1)
            or not 0 < self.epochs < math.inf
            or self.batch_size < 1
        ):
            raise OffsiteError(
                "Training needs at least one step, more than 0 epochs and a batch of at least one "
                "row."
            )
        counts = (self.accumulate, self.save_every, self.eval_every, self.patience)
        if any(count is not None and count < 1 for count in counts):
            raise OffsiteError("accumulate, save_every, eval_every and patience must be 1 or more.")
        if not 0 <= self.warmup < 1:
            raise OffsiteError(
                f"A warmup of {self.warmup} is not a share of the steps; use a value from 0 to "
                "below 1."
            )
        check_seed(self.seed)
        from transformers import SchedulerType

        if self.schedule not in (known := [kind.value for kind in SchedulerType]):
            raise OffsiteError(
                f"'{self.schedule}' is not a schedule; choose one of: {', '.join(known)}."
            )
        if not 0 <= self.weight_decay < 100 or not 0 < self.max_grad_norm < math.inf:
            raise OffsiteError("Use a weight_decay of 0 or more and a max_grad_norm above 0.")
        for lr in (self.lr, self.head_lr):
            if lr is not None and not 0 < lr < 100:
                raise OffsiteError(f"A learning rate of {lr} is not usable; try 1e-4 to 1e-2.")
        if self.precision not in (None, *PRECISIONS):
            raise OffsiteError(
                f"'{self.precision}' is not a training precision; use one of: "
                f"{', '.join(PRECISIONS)}."
            )
        if self.shard and self.precision == "float8":
            raise OffsiteError(
                "Weights in float8 cannot be sharded; leave out --shard, or use --precision "
                "bfloat16."
            )

    def identity(self) -> dict[str, Any]:
        """The options that have a part in the result, as JSON."""
        return {key: value for key, value in asdict(self).items() if key not in IDLE}
