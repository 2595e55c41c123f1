"""Continue training when a batch does not fit into memory, and free memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from offsite.errors import DoesNotFitError
from offsite.training.progress import say
from offsite.training.recording import Recorder


class FittingTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that computes a batch in parts when it is too large for the device at once.

    Out of memory halves the part. When a single row does not fit, activations are computed again
    in the backward pass. The optimiser still sees the whole batch, so only rounding differs. The
    part that fitted is kept for the batches that follow.

    Attributes:
        divisible: whether the loss of a batch is the sum of the losses of its parts.
        part: rows at a time; None for whole batches.
        recorder: runs the steps instead, while whole batches fit.
    """

    divisible = True
    part: int | None = None
    recorder: Recorder | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a recording and its memory are given up at the end."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.recorder = None

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Gradients of one batch; see :meth:`transformers.Trainer.training_step`.

        Raises:
            DoesNotFitError: out of memory with a single row, under torchrun (its processes must
                stay in step), or with a loss that cannot be divided.
        """
        step = partial(self._fitting, model)
        if self.recorder is None or self.part is not None:
            return step(inputs, num_items_in_batch)
        return self.recorder(step, self._prepare_inputs(inputs), num_items_in_batch)

    def _fitting(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        rows = max(len(value) for value in inputs.values() if isinstance(value, torch.Tensor))
        begun = [(p, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        while True:
            size = min(self.part or rows, rows)
            try:
                losses = [
                    super(FittingTrainer, self).training_step(
                        model, rows_between(inputs, start, start + size), num_items_in_batch
                    )
                    for start in range(0, rows, size)
                ]
                return torch.stack(losses).sum()
            except torch.OutOfMemoryError:
                pass  # its traceback holds on to activations, so what follows stands outside
            if self.args.world_size > 1 or not self.divisible or num_items_in_batch is None:
                raise DoesNotFitError(
                    f"A batch of {rows} rows does not fit into the memory of {self.args.device}; "
                    "use a smaller batch size."
                )
            self._shrink(size)
            undo_pass(model, begun)

    def _shrink(self, size: int) -> None:
        if size > 1:
            self.part = (size + 1) // 2
            say(f"Out of memory: from here on batches are computed {self.part} rows at a time.")
        elif not self.args.gradient_checkpointing:
            self.args.gradient_checkpointing = True
            self.model.gradient_checkpointing_enable()
            say("Out of memory: from here on activations are computed again in the backward pass.")
        else:
            raise DoesNotFitError(
                f"A single row does not fit into the memory of {self.args.device}; use a smaller "
                "--max-length."
            )


def rows_between(inputs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """Some rows of a batch."""
    return {k: v[start:end] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def undo_pass(model: nn.Module, begun: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Free what a failed pass left, and put the gradients back to what they were before it."""
    model.zero_grad(set_to_none=True)
    for parameter, gradient in begun:
        parameter.grad = gradient.clone()
    trim_memory()


def trim_memory() -> None:
    """Return freed memory to the system, and that of a GPU to other processes on it.

    glibc keeps freed gaps between what is still in use: half a gigabyte after SmolLM2-135M was
    tuned. With another C library they stay.
    """
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, such as musl
            ctypes.CDLL("libc.so.6").malloc_trim(0)
