"""Gradients of single examples, clipped and noised: the part of DP-SGD that needs opacus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from offsite.errors import OffsiteError
from offsite.training import secure_noise


@contextmanager
def per_example(model: nn.Module) -> Iterator[None]:
    """Let every backward pass leave the gradients of single examples in ``grad_sample``.

    The model must be on its device already: opacus copies layers it has no rule for when it
    attaches, and the copies do not move (opacus issue 820). The loss must be a sum over examples.
    """
    wrapper = GradSampleModule(model, strict=False, loss_reduction="sum")
    try:
        yield
    finally:
        wrapper.to_standard_module()
        for parameter in model.parameters():
            for name in ("grad_sample", "summed_grad"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
            parameter.grad = None


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """opacus's optimiser with noise from the operating system, and steps of any number of batches.

    Poisson sampling may choose more examples than fit in memory, or none at all.
    """

    def add_examples(self) -> None:
        """Clip the gradients of the examples of the last backward pass and add them up."""
        self.clip_and_accumulate()
        for parameter in self.params:
            parameter.grad_sample = None

    def add_noise(self) -> None:
        """Put the noised sum into ``grad``."""
        scale = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            total = parameter.summed_grad
            noise = secure_noise.normal(parameter.shape).to(parameter.device, parameter.dtype)
            parameter.grad = scale * noise if total is None else total + scale * noise

    def noisy_step(self) -> None:
        """One step with what was added since the last."""
        self.add_noise()
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size
            parameter.summed_grad = None
        self.original_optimizer.step()


def check_gradients(model: nn.Module, losses: Any, rows: Sequence[Any]) -> None:
    """Compare the gradients of two examples with those that each has alone.

    Args:
        model: inside :func:`per_example`. Dropout is off while this compares.
        losses: the summed loss of a list of rows.
        rows: two rows.

    Raises:
        OffsiteError: they differ or are missing, so clipping them would bound nothing.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    for module in model.eval().modules():  # opacus's hooks are silent in evaluation mode
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))
    alone = []
    for row in rows:
        losses([row]).backward()
        alone.append([_taken(p) for p in trained])
    losses(list(rows)).backward()
    for place, parameter in enumerate(trained):
        together = getattr(parameter, "grad_sample", None)
        right = isinstance(together, torch.Tensor) and len(together) == len(rows)
        for index in range(len(rows) if right else 0):
            single = alone[index][place]
            size = max(float(single.abs().max()), 1e-6)
            right &= bool((together[index] - single).abs().max() <= 1e-3 * size)  # type: ignore[index]
        if not right:
            raise OffsiteError(
                "This method or model cannot be tuned with --dp-epsilon, because its gradients "
                "of single examples are wrong; use lora, bitfit or full."
            )
        parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]


def _taken(parameter: Any) -> torch.Tensor:
    """The ordinary gradient of a parameter, which is cleared."""
    found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    parameter.grad = parameter.grad_sample = None
    return found
