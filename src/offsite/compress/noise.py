"""Noise in the weights of the middle. Ours, kept for comparison: it does not protect a model.

On SmolLM2-135M a tuner who tunes every weight of the offer beats the plug-in (margin -0.18 nats at
scale 0.2, -0.63 at 0.4). Two offers of one model at two scales give the weights back exactly, and
several draws average out, so a record refuses a second draw or scale. The depth is kept, so follow
it by ``Quantise`` to save bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.compress.linears import map_linears, matrix, with_matrix
from offsite.compress.step import Context, Needs
from offsite.errors import require
from offsite.model.split import Middle


@dataclass(frozen=True)
class Noise:
    """Add normal noise to every linear weight: ``scale`` times the root mean square of its matrix.

    Each matrix's noise is drawn from a 256-bit hash of its exact weights and the recipe's seed, so
    nobody without them can draw the same noise and subtract it. The hash does not hold the scale:
    the same draw at two scales gives the weights back. Tuning every weight removes the harm of the
    noise. Anybody can also compute ``(W + s r N) / (1 + s^2)``, which is nearer to W than the offer
    is.
    """

    scale: float

    kind: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        require(0 <= self.scale <= 10, f"A noise scale of {self.scale} is not usable; use 0 to 10.")

    @property
    def needs(self) -> Needs:
        """Nothing but the middle."""
        return Needs()

    def __call__(self, middle: Middle, context: Context) -> Middle:
        def change(position: int, name: str, layer: nn.Module) -> nn.Module | None:
            weight = matrix(layer)
            if self.scale == 0:
                return None
            noise = secret_normal(weight, context.seed)
            rms = weight.square().mean().sqrt()
            return with_matrix(layer, weight + self.scale * rms * noise.to(weight.device))

        return map_linears(middle, change)


def secret_normal(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """Standard normal numbers of a float32 matrix's shape that only its holder can draw.

    A 256-bit key stretched by SHAKE-256, two words a pair of numbers (Box and Muller): torch's own
    generator has seeds of 32 bits on a CPU, few enough to try them all against an offer.
    """
    raw = weight.detach().cpu().contiguous().view(torch.uint8).numpy().data
    key = hashlib.sha256(hashlib.sha256(raw).digest() + str(seed).encode()).digest()
    half = (weight.numel() + 1) // 2
    stream = bytearray(hashlib.shake_256(key).digest(8 * half))
    words = torch.frombuffer(stream, dtype=torch.int32).double()
    radius, angle = ((words + 2**31 + 0.5) / 2**32).view(2, half)  # uniform, neither 0 nor 1
    radius, angle = (-2 * radius.log()).sqrt(), 2 * torch.pi * angle
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()])
    return normal[: weight.numel()].float().view(weight.shape)
