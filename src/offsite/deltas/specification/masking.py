"""Binary masks over frozen weights (Zhao et al., arXiv 2004.12406)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.reparameterisation.reweight import AttachedReweighting, reweight
from offsite.deltas.targets import linear_layers


class BinaryMask(nn.Module):
    """``weight * (score >= 0)``, with the straight-through gradient to ``score``.

    A score starts at its weight's magnitude over the root mean square of the tensor: nothing is
    masked at first, and the smallest weights are the easiest to mask.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        size = weight.detach().float().abs()
        scale = size.pow(2).mean().sqrt().clamp_min(1e-12)
        self.score = nn.Parameter(size / scale)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        hard = (self.score >= 0).to(self.score.dtype)
        mask = hard + (self.score - self.score.detach())  # the second term is zero
        return (weight.float() * mask).to(weight.dtype)


def pack_bits(bits: torch.Tensor) -> torch.Tensor:
    """Booleans (any shape) as uint8 of shape (ceil(n / 8),), first bit lowest."""
    flat = nn.functional.pad(bits.flatten().to(torch.uint8), (0, -bits.numel() % 8))
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (flat.view(-1, 8) * powers).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The booleans of :func:`pack_bits`, in ``shape``."""
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] & powers) != 0
    return bits.flatten()[: torch.Size(shape).numel()].view(*shape)


@dataclass(frozen=True)
class Masking(Method):
    """``W * m`` with a learnt binary ``m``: weights are only ever kept or removed.

    The delta holds ``mask``, one bit for each weight, uint8 of shape (ceil(n / 8),). Starts at no
    change; merges exactly. The paper (section 3.2) draws initial scores uniformly and thresholds
    them at a constant; ours start at the weights' magnitudes, so that training begins at the model.

    Attributes:
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    targets: str = "all"

    kind: ClassVar[str] = "masking"
    place: ClassVar[str] = "weights"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 3e-2
    when: ClassVar[str] = "one bit a weight; the tuned blocks hold no weight the owner did not make"

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        layers = linear_layers(model, blocks, self.targets)
        parts, fold = reweight(model, layers, lambda _, weight: BinaryMask(weight))
        return AttachedMasks(self, model, parts, fold)


class AttachedMasks(AttachedReweighting[BinaryMask]):
    """Masks over weights, by the weight's name."""

    def tensors(self) -> dict[str, torch.Tensor]:
        parts = self.parts.items()
        return {f"{name}.mask": pack_bits(part.score.detach() >= 0) for name, part in parts}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, part in self.parts.items():
                bits = unpack_bits(tensors[f"{name}.mask"].to(part.score.device), part.score.shape)
                part.score.copy_(bits.to(part.score) * 2 - 1)
