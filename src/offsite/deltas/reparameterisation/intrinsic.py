"""A few parameters spread over all weights (intrinsic dimension; Aghajanyan et al., 2012.13255)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.deltas.reparameterisation.reweight import reweight
from offsite.deltas.targets import linear_layers
from offsite.errors import check_seed, require
from offsite.model.blocks import block_of, block_path


class Hadamard(torch.autograd.Function):
    """The orthonormal Walsh-Hadamard transform of the last dimension (a power of two).

    Goes to and fro between two buffers, which is several times faster than new tensors at each
    level. The transform is symmetric, so it is its own gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        size, source = x.shape[-1], x.contiguous()
        target, spare = torch.empty_like(source), torch.empty_like(source)
        for level in range(size.bit_length() - 1):
            pairs = (*x.shape[:-1], -1, 2, 1 << level)
            left, right = source.view(pairs).unbind(-2)
            torch.add(left, right, out=target.view(pairs)[..., 0, :])
            torch.sub(left, right, out=target.view(pairs)[..., 1, :])
            source, target = target, source if level else spare  # never into x
        return source / math.sqrt(size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return hadamard(gradient)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """The transform of ``x``, differentiable."""
    result: torch.Tensor = Hadamard.apply(x)  # type: ignore[no-untyped-call]
    return result


class Fastfood(nn.Module):
    """A fixed random linear map of ``dim`` parameters to a weight, ``H G P H B`` (Le et al., 2013).

    ``B`` random signs, ``P`` a permutation, ``G`` Gaussian, ``H`` Walsh-Hadamard; rows are stacked
    until the weight is filled, all with one ``P``. A coordinate's variance is that of the inputs
    times ``dim`` over its next power of two.
    """

    signs: torch.Tensor
    order: torch.Tensor
    gauss: torch.Tensor

    def __init__(self, dim: int, shape: Sequence[int], draw: np.random.RandomState) -> None:
        super().__init__()
        self.shape, self.size = torch.Size(shape), 1 << (dim - 1).bit_length()
        rows = -(-self.shape.numel() // self.size)
        signs = draw.randint(0, 2, (rows, self.size)).astype(np.int8) * 2 - 1
        order = draw.permutation(self.size)
        gauss = draw.standard_normal((rows, self.size)).astype(np.float32)
        for name, value in (("signs", signs), ("order", order), ("gauss", gauss)):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(theta.float(), (0, self.size - theta.numel()))
        mixed = hadamard(padded * self.signs)[:, self.order] * self.gauss
        return hadamard(mixed).flatten()[: self.shape.numel()].view(self.shape)


class Projected(nn.Module):
    """``weight + scale * Fastfood(theta)``; one ``theta`` for all, one ``scale`` a block."""

    def __init__(self, theta: nn.Parameter, scale: nn.Parameter | None, project: Fastfood) -> None:
        super().__init__()
        self.theta, self.scale, self.project = theta, scale, project

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        difference = self.project(self.theta)
        if self.scale is not None:
            difference = difference * self.scale
        moved: torch.Tensor = (weight.float() + difference).to(weight.dtype)
        return moved


@dataclass(frozen=True)
class IntrinsicDimension(Method):
    """``W + scale_block * P(theta)``, ``P`` a fixed random projection: SAID, equation 4.

    The delta holds ``theta`` (dim,) and one ``scale`` (1,) for each block, float32. The projection
    is drawn again from ``seed`` (numpy's ``RandomState``, whose stream is frozen), weight by weight
    in the order of the adapter, so it is the same in the emulator and the full model. Starts at no
    change; merges. We project linear weights only; the paper all parameters.

    Attributes:
        dim: how many parameters; at most 65536.
        structured: one scale per block (SAID); without it, plain DID.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    dim: int = 1000
    structured: bool = True
    targets: str = "all"
    seed: int = 0

    kind: ClassVar[str] = "intrinsic"
    place: ClassVar[str] = "weights"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 3e-3
    when: ClassVar[str] = "the fewest bytes that still merge: a thousand parameters and a seed"

    def __post_init__(self) -> None:
        require(2 <= self.dim <= 65536, f"dim={self.dim} is not usable; use 2 to 65536.")
        check_seed(self.seed)

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        layers, path = linear_layers(model, blocks, self.targets), block_path(model)
        device = next(model.parameters()).device
        draw = np.random.RandomState(self.seed)
        theta = nn.Parameter(torch.zeros(self.dim, device=device))
        scales: dict[int, nn.Parameter] = {}
        if self.structured:
            scales = {index: nn.Parameter(torch.ones(1, device=device)) for index in blocks}

        def build(name: str, weight: nn.Parameter) -> Projected:
            index = block_of(name, path)
            assert index is not None
            project = Fastfood(self.dim, weight.shape, draw).to(weight.device)
            return Projected(theta, scales.get(index), project)

        _, fold = reweight(model, layers, build)
        named = {f"{path}.{index}.scale": scale for index, scale in scales.items()}
        return AttachedParameters(self, model, {"theta": theta, **named}, undo=fold)
