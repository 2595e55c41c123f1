"""Low-rank changes like those of tuning, applied to a model and its emulator together.

An emulator that agrees with the model only as both are may disagree once both are tuned alike.
LLEOT aligns at perturbed adapters; here the perturbations are not random:
each is tuned in the full model on a part of the owner's data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from offsite.compress.linears import linears, matrix
from offsite.compress.step import Context
from offsite.model.blocks import get_blocks
from offsite.model.split import Kept
from offsite.training.options import TrainOptions
from offsite.training.train import train

RANK, SCALE = 16, 2.0
STEPS, ROWS, LR = 40, 8, 1e-3

Change = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # "position.layer" to A and B


class LowRank(nn.Module):
    """``SCALE * B A`` added to every linear layer of every block.

    A is (rank, inputs) and B (outputs, rank); B starts at zero.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.hidden = (model,)  # a tuple is not a sub-module
        self.names: list[str] = []
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        for position, block in enumerate(get_blocks(model)):
            for name, layer in linears(block, factors=False):
                outputs, inputs = matrix(layer).shape
                self.names.append(f"{position}.{name}")
                first = torch.randn(RANK, inputs, generator=generator) / math.sqrt(inputs)
                self.a.append(nn.Parameter(first))
                self.b.append(nn.Parameter(torch.zeros(outputs, RANK)))

    @property
    def change(self) -> Change:
        """The factors by layer."""
        return dict(zip(self.names, zip(self.a, self.b, strict=True), strict=True))

    def forward(self, loss: Any) -> torch.Tensor:
        """The loss of the model with this change."""
        (model,) = self.hidden
        with carried(model, self.change, range(len(get_blocks(model)))):
            result: torch.Tensor = loss(model)
        return result


def tuned_changes(context: Context, data: Any, count: int) -> list[Change]:
    """``count`` changes, each tuned for 40 steps of 8 rows on another part of ``data``.

    Raises:
        OffsiteError: blocks with weights that are not linear layers.
    """
    assert context.task is not None
    task, parts = context.task, min(count, len(data))
    found: list[Change] = []
    for index in range(count):
        part = index % parts
        rows = range(part * len(data) // parts, (part + 1) * len(data) // parts)
        low_rank = LowRank(context.model, context.seed + index)
        train(
            low_rank,
            Subset(data, rows),
            loss=lambda model, batch, items: model(lambda full: task.loss(full, batch, items)),
            collate=task.collate,
            options=TrainOptions(steps=STEPS, lr=LR, batch_size=ROWS, seed=context.seed + index),
            device=context.device,
            text=f"tuning change {index + 1} of {count}",
        )
        found.append({name: (a.detach(), b.detach()) for name, (a, b) in low_rank.change.items()})
    return found


@contextmanager
def carried(
    model: nn.Module,
    change: Change,
    positions: Sequence[int],
    kept: Mapping[str, Kept] | None = None,
    scale: float = 1.0,
) -> Iterator[None]:
    """Inside the ``with``, the linear layers of a model add ``scale`` times a change.

    Args:
        positions: of the model's blocks in the full model; a block that stands for several carries
            the change of each.
        kept: what is left of layers that are narrower than in the full model.
    """
    with ExitStack() as stack:
        for position, block in zip(positions, get_blocks(model), strict=True):
            for name, layer in linears(block):
                if (factors := change.get(key := f"{position}.{name}")) is None:
                    continue
                a, b = narrowed(*factors, (kept or {}).get(key, Kept()))
                hook = partial(_add, a=a, b=b, scale=scale * SCALE)
                stack.callback(layer.register_forward_hook(hook).remove)
        yield


def narrowed(a: torch.Tensor, b: torch.Tensor, left: Kept) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, inputs) and B (outputs, rank) at the inputs and outputs that a layer still has."""
    if left.columns is not None:
        a = a[:, list(left.columns)]
    if left.rows is not None:
        b = b[list(left.rows)]
    return a, b


def _add(
    module: nn.Module,
    args: tuple[torch.Tensor, ...],
    output: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    inner = nn.functional.linear(args[0], a.to(args[0].dtype))
    return output + scale * nn.functional.linear(inner, b.to(inner.dtype))
