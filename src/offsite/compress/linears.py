"""Walk and replace the linear layers of a middle, whatever the family calls them.

A *matrix* is always of shape (outputs, inputs), also for GPT-2's transposed ``Conv1D``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.errors import OffsiteError
from offsite.model.blocks import alias
from offsite.model.layers import Described, LowRankLinear, QuantisedLinear
from offsite.model.split import Middle

Change = Callable[[int, str, nn.Module], nn.Module | None]


def linears(block: nn.Module, *, factors: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every plain linear layer of a block, in the order of its definition.

    Layers inside a harmonizer are passed over, those inside a low-rank layer only with ``factors``
    counted.

    Raises:
        OffsiteError: the block is quantised already, so no weight is left to work on, or it has
            weights that are not linear layers, such as fused experts or a convolution.
    """
    for name, parameter in block.named_parameters():
        if parameter.dim() > 2:
            what = "fused experts" if "expert" in name else f"a weight of {parameter.dim()} axes"
            raise OffsiteError(
                f"This step changes plain linear layers only, but the blocks hold {what} "
                f"('{name}'); drop, share or distil whole blocks instead."
            )
    inside: list[str] = []
    for name, module in block.named_modules():
        if isinstance(module, QuantisedLinear):
            raise OffsiteError(
                "The middle is quantised already; put 'quantise' last in the recipe."
            )
        if isinstance(module, Described) and not (factors and isinstance(module, LowRankLinear)):
            inside.append(f"{name}." if name else "")
        elif isinstance(module, (nn.Linear, Conv1D)) and not name.startswith(tuple(inside)):
            yield name, module


def matrix(layer: nn.Module) -> torch.Tensor:
    """The weight of a linear layer as a float32 matrix (outputs, inputs); may be a view."""
    weight = layer.weight.detach().float()  # type: ignore[operator]
    return weight.T if isinstance(layer, Conv1D) else weight


def with_matrix(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    """A layer of the same class and bias (if it still fits) around another matrix.

    ``weight`` is (outputs, inputs), of any size; it takes the dtype of the layer's own. A bias of
    another length must be set by the caller.
    """
    old = layer.weight
    assert isinstance(old, torch.Tensor)
    new = alias(layer)
    value = weight.T if isinstance(layer, Conv1D) else weight
    new.weight = nn.Parameter(value.to(old.dtype).contiguous().clone(), old.requires_grad)
    outputs, inputs = weight.shape
    if isinstance(new, Conv1D):
        new.nf, new.nx = outputs, inputs
    else:
        new.out_features, new.in_features = outputs, inputs  # type: ignore[assignment]
    return new


def map_linears(middle: Middle, change: Change, *, factors: bool = True) -> Middle:
    """The middle with linear layers replaced by ``change(position, name, layer)``.

    ``change`` returns the new layer, or None to leave the old one. Blocks that share a layer by
    reference share its replacement too; nothing is written into the blocks given.

    Raises:
        OffsiteError: see :func:`linears`.
    """
    done: dict[int, nn.Module | None] = {}
    blocks = []
    for position, old in zip(middle.positions, middle.blocks, strict=True):
        block = alias(old)
        for name, layer in list(linears(block, factors=factors)):
            key = id(layer.weight)
            if key not in done:
                done[key] = change(position, name, layer)
                new = done[key]
            else:
                first = done[key]
                new = None if first is None else alias(first)
            if new is not None:
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, new)
        blocks.append(block)
    return replace(middle, blocks=tuple(blocks))
