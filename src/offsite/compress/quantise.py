"""Round-to-nearest quantisation of the middle's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from offsite.compress.linears import map_linears, matrix
from offsite.compress.step import Context, Needs
from offsite.errors import require
from offsite.model.layers import QuantisedLinear
from offsite.model.split import Middle


@dataclass(frozen=True)
class Quantise:
    """Weights of every linear layer in ``bits`` 8 or 4, one scale per ``group`` of inputs.

    Symmetric and weight-only: weights are stored packed and computed in the dtype of the
    activations. If ``group`` does not divide the inputs of a layer, the divisor nearest by ratio is
    used. A layer with an odd number of inputs (a factor of odd rank) takes 8 bits, because two
    4-bit codes share a byte. Offsite-Tuning (arXiv 2302.04870) has this as a baseline; the groups
    are ours. Put it last in a recipe, or before ``Distill``, which then trains biases, norms and
    harmonizers.
    """

    bits: Literal[8, 4] = 8
    group: int = 64

    kind: ClassVar[str] = "quantise"

    def __post_init__(self) -> None:
        require(self.bits in (8, 4), f"Weights cannot be stored in {self.bits} bits; use 8 or 4.")
        require(self.group >= 1, f"A group cannot have {self.group} inputs; use 1 or more.")

    @property
    def needs(self) -> Needs:
        """Nothing but the middle."""
        return Needs()

    def __call__(self, middle: Middle, context: Context) -> Middle:
        def change(position: int, name: str, layer: nn.Module) -> nn.Module:
            return quantised(layer, self.bits, self.group)

        return map_linears(middle, change)


def quantised(layer: nn.Module, bits: int, group: int) -> QuantisedLinear:
    """The quantised form of a plain linear layer."""
    outputs, inputs = matrix(layer).shape
    own, bias = layer.weight, layer.bias
    assert isinstance(own, torch.Tensor)
    bits = 8 if inputs % 2 else bits
    new = QuantisedLinear(inputs, outputs, bits, fitting_group(inputs, group), bias is not None)
    new.store(matrix(layer).to(own.dtype))
    new.bias = bias  # type: ignore[assignment]
    return new


def fitting_group(inputs: int, group: int) -> int:
    """The divisor of ``inputs`` whose ratio to ``group`` is nearest to one."""
    divisors = [d for d in range(1, inputs + 1) if inputs % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / group)))
