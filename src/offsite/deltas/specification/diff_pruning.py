"""Sparse differences by hard-concrete gates (diff pruning; Guo et al., arXiv 2012.07463)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.reparameterisation.reweight import AttachedReweighting, reweight
from offsite.deltas.targets import linear_layers
from offsite.errors import OffsiteError, require

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1  # the hard-concrete constants of Louizos et al. (1712.01312)
SPEED = 300.0  # gates are stored divided by this, so that one learning rate suits both
OPEN = 0.0  # at the start a gate lets five differences in six through
PRESSURE = 2.0  # of the L0 gradient, in root mean squares of the loss gradient


class Pressed(torch.autograd.Function):
    """A gate as it is, whose gradient has that of the expected L0 norm added.

    It is added while the expected density lies above the target, in proportion to the gradient of
    the loss, so that it means the same in each of several accumulated batches.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, density: float) -> torch.Tensor:
        ctx.save_for_backward(gate)
        ctx.density = density
        return gate.view_as(gate)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        is_open = torch.sigmoid(ctx.saved_tensors[0] * SPEED - BETA * math.log(-LOW / HIGH))
        if is_open.mean() > ctx.density:
            slope = is_open * (1 - is_open)
            size = gradient.pow(2).mean().sqrt()
            gradient = gradient + PRESSURE * size * slope / slope.mean().clamp_min(1e-30)
        return gradient, None


class SparseDifference(nn.Module):
    """``weight + z * value`` with a gate ``z`` in [0, 1] for each entry; ``value`` starts at zero.

    In training ``z`` is drawn from the hard-concrete distribution. In evaluation it is its
    deterministic value, and only the ``count`` largest differences are kept, for the delta.
    """

    def __init__(self, weight: torch.Tensor, density: float) -> None:
        super().__init__()
        self.density, self.count = density, max(1, round(density * weight.numel()))
        self.value = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
        self.gate = nn.Parameter(torch.full_like(self.value, OPEN / SPEED))

    def difference(self) -> torch.Tensor:
        """The dense difference before pruning, in float32."""
        gate: torch.Tensor = Pressed.apply(self.gate, self.density)  # type: ignore[no-untyped-call]
        logit = gate * SPEED
        if self.training:
            noise = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            logit = (torch.logit(noise) + logit) / BETA
        return (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0, 1) * self.value

    def kept(self) -> torch.Tensor:
        """Flat indices of the ``count`` largest differences, ascending, int64."""
        flat = self.difference().detach().abs().flatten()
        return flat.topk(self.count).indices.sort().values

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        difference = self.difference()
        if not self.training:
            mask = torch.zeros_like(difference).flatten()
            mask[self.kept()] = 1
            difference = difference * mask.view_as(difference)
        return (weight.float() + difference).to(weight.dtype)


@dataclass(frozen=True)
class DiffPruning(Method):
    """``W + z * v`` where the gates ``z`` leave only a small share of the differences.

    The delta holds, for each weight, ``indices`` (count,) int32 into the flattened weight and
    ``values`` (count,) float32. ``count`` is round(density * size), so the size is known before
    training. Starts at no change; merges.

    Two stages reach the target. The L0 gradient of equation 4 is scaled to twice the gradient of
    the loss and applied until the expected density is low enough. Then comes the final magnitude
    pruning of section 3.2. The constants are those of Louizos et al. We treat each tensor alone;
    the paper prunes all together, uses a fixed penalty weight and tunes once more after pruning.

    Attributes:
        density: share of the entries of each weight that the delta holds, 0..1.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    density: float = 0.005
    targets: str = "all"

    kind: ClassVar[str] = "diff_pruning"
    place: ClassVar[str] = "weights"
    merges: ClassVar[bool] = True
    lr: ClassVar[float] = 5e-3
    when: ClassVar[str] = "a sparse change of a size fixed beforehand; merges without new modules"

    def __post_init__(self) -> None:
        require(
            0 < self.density <= 0.5,
            f"A density of {self.density} is not sparse; use more than 0 and at most 0.5.",
        )

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        layers = linear_layers(model, blocks, self.targets)
        parts, fold = reweight(
            model, layers, lambda _, weight: SparseDifference(weight, self.density)
        )
        return AttachedDifferences(self, model, parts, fold)


class AttachedDifferences(AttachedReweighting[SparseDifference]):
    """Sparse differences of weights, by the weight's name."""

    def tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for name, part in self.parts.items():
            was_training = part.training
            part.eval()
            kept = part.kept()
            tensors[f"{name}.indices"] = kept.to(torch.int32)
            tensors[f"{name}.values"] = part.difference().detach().flatten()[kept]
            part.train(was_training)
        return tensors

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the differences.

        Raises:
            OffsiteError: indices that are not ascending or point outside the weight.
        """
        for name, part in self.parts.items():
            indices = tensors[f"{name}.indices"].long().to(part.value.device)
            if indices[0] < 0 or indices[-1] >= part.value.numel() or (indices.diff() <= 0).any():
                raise OffsiteError(
                    f"The indices of '{name}' must ascend and lie within its "
                    f"{part.value.numel()} parameters; the delta is malformed."
                )
            with torch.no_grad():
                part.value.zero_()
                part.value.view(-1)[indices] = tensors[f"{name}.values"].to(part.value)
                part.gate.fill_(10 / SPEED)  # wide open: a gate of exactly one

    def detach(self) -> nn.Module:
        self.model.eval()  # the gates then have the values that the delta holds
        return super().detach()
