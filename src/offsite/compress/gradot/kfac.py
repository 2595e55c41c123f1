"""Gradients and Kronecker-factored Fisher statistics of the linear layers of chosen blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from offsite.compress.linears import linears, matrix
from offsite.compress.step import Context
from offsite.model.blocks import get_blocks
from offsite.model.replay import real_tokens
from offsite.training.progress import track

ROWS, MEMORY = 4, 2 * 2**30


@dataclass
class Statistics:
    """Of one linear layer with weight (outputs, inputs), in float32, summed over all tokens.

    Attributes:
        a: inputs times inputs, (inputs, inputs).
        g: gradients at the output times themselves, (outputs, outputs).
        gradient: of the weight, (outputs, inputs).
    """

    a: torch.Tensor
    g: torch.Tensor
    gradient: torch.Tensor

    @classmethod
    def empty(cls, weight: torch.Tensor) -> Statistics:
        """Zeros for a matrix (outputs, inputs)."""
        outputs, inputs = weight.shape
        return cls(
            weight.new_zeros(inputs, inputs),
            weight.new_zeros(outputs, outputs),
            weight.new_zeros(outputs, inputs),
        )

    def watch(
        self,
        real: Sequence[torch.Tensor | None],
        layer: nn.Module,
        args: tuple[Any, ...],
        output: torch.Tensor,
    ) -> None:
        """A forward hook that adds one batch when its gradient comes back, without padding."""
        mask = real[0]
        states = args[0].detach() if mask is None else args[0].detach()[mask]
        inputs = states.flatten(0, -2).float()

        def backward(gradient: torch.Tensor) -> None:
            slopes = gradient.detach() if mask is None else gradient.detach()[mask]
            slope = slopes.flatten(0, -2).float()
            self.a += inputs.T @ inputs
            self.g += slope.T @ slope
            self.gradient += slope.T @ inputs

        output.register_hook(backward)  # type: ignore[no-untyped-call]


def collect(
    context: Context, positions: Sequence[int], batches: int
) -> Iterator[tuple[Sequence[int], dict[tuple[int, str], Statistics]]]:
    """Statistics of the linear layers of the full model's blocks at ``positions``.

    Yields a few blocks at a time, as many as fit 2 GiB, with every (position, name) of them.
    """
    blocks = get_blocks(context.model)
    sizes = [matrix(layer).shape for p in positions[:1] for _, layer in linears(blocks[p])]
    each = 4 * sum(m * m + m * n + n * n for m, n in sizes)
    step = max(1, MEMORY // max(each, 1))
    for start in range(0, len(positions), step):
        chosen = positions[start : start + step]
        yield chosen, measure(context, chosen, batches)


def measure(
    context: Context, positions: Sequence[int], batches: int
) -> dict[tuple[int, str], Statistics]:
    """One pass over the calibration batches for a few blocks; no parameter gets a gradient."""
    assert positions
    blocks, found = get_blocks(context.model), {}
    leaf: list[torch.Tensor] = []
    real: list[torch.Tensor | None] = [None]  # which tokens of this batch are not padding
    with ExitStack() as stack, torch.enable_grad():
        stack.callback(
            blocks[min(positions)]
            .register_forward_pre_hook(make_leaf(leaf), with_kwargs=True)
            .remove
        )
        for position in positions:
            for name, layer in linears(blocks[position]):
                found[position, name] = Statistics.empty(matrix(layer))
                handle = layer.register_forward_hook(partial(found[position, name].watch, real))
                stack.callback(handle.remove)
        for batch in track(context.batches(batches, ROWS), "measuring gradients", batches):
            assert context.task is not None
            real[0] = real_tokens(batch)
            torch.autograd.grad(context.task.loss(context.model, batch), leaf.pop())
    return found


def make_leaf(leaf: list[torch.Tensor]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook that cuts the graph at a block's input and remembers the new leaf."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        state = args[0] if args else kwargs["hidden_states"]
        leaf.append(state.detach().requires_grad_())
        return (
            ((leaf[-1], *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": leaf[-1]})
        )

    return hook
