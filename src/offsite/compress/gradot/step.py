"""GradOT (arXiv 2507.04455): training-free compression that keeps the adapter's gradient.

The authors published no code. What follows them: a part of the weights is judged by the change d
that cutting it makes, with score ``|H d|_1 - lambda g.d``; g is the gradient of the loss, H the
KFAC Fisher (input covariance A times output-gradient covariance G). A part of large ``|H d|_1``
moves the gradient and must stay; one of large ``g.d`` raises the emulator's own loss and may go.
Attention: singular values chosen by the score, the top 5 % always kept. Feed-forward: intermediate
channels chosen by it.

Ours: both terms are divided by their sum of absolute values within a matrix (or feed-forward), so
that ``weight``, the paper's lambda, means the same everywhere; the size is given as the share of
parameters kept; the score of a channel is the sum over the matrices it passes through, biases left
out; statistics are those of the full model at the same position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from offsite.compress.channels import check_same, cut_channels, split_feed_forward
from offsite.compress.decomposition import decompose
from offsite.compress.gradot.kfac import Statistics, collect
from offsite.compress.linears import linears, map_linears, matrix
from offsite.compress.rank import factorised
from offsite.compress.step import Context, Needs
from offsite.errors import check_share, require
from offsite.model.blocks import get_blocks
from offsite.model.layers import is_attention
from offsite.model.split import Kept, Middle

PROTECTED = 0.05


@dataclass(frozen=True)
class GradOT:
    """Cut attention and feed-forward of every middle block by the gradient-preserving score.

    Attributes:
        attention: share of the parameters of each attention projection kept, as two factors; 1
            leaves it whole.
        feed_forward: share of the intermediate channels kept; 1 leaves them whole.
        weight: the paper's lambda, after both terms are normalised; 0 keeps what matters to the
            gradient alone. From 0.3 on, measured on bookling-31m, the adapter's gradient suffers
            more than the emulator's own loss.
        batches: calibration batches of 4 rows.

    Works on gated (LLaMA) and plain (GPT-2, OPT, BLOOM) feed-forwards. Put it before ``Share`` and
    ``Quantise``.
    """

    attention: float = 0.5
    feed_forward: float = 0.5
    weight: float = 0.1
    batches: int = 16

    kind: ClassVar[str] = "gradot"

    def __post_init__(self) -> None:
        for share in (self.attention, self.feed_forward):
            check_share(share)
        require(self.batches >= 1, f"GradOT cannot measure {self.batches} batches; use 1 or more.")

    @property
    def needs(self) -> Needs:
        """Calibration data, where something is cut."""
        cuts = min(self.attention, self.feed_forward) < 1
        rows = 4 * self.batches if cuts else 0
        decomposes = is_attention if self.attention < 1 else None
        return Needs(data=cuts, rows=rows, passes=3, decomposes=decomposes)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        if self.attention == self.feed_forward == 1:
            return middle
        new: dict[tuple[int, str], nn.Module] = {}
        kept = dict(middle.kept)
        standing = dict(zip(middle.positions, middle.blocks, strict=True))
        real = [p for p in middle.positions if any(True for _ in linears(standing[p]))]
        for positions, statistics in collect(context, real, self.batches):
            for position in positions:
                layers = dict(linears(standing[position], factors=False))
                check_same(get_blocks(context.model)[position], layers, "gradot")
                known = {name: statistics.pop((position, name)) for name in layers}
                changed, narrower = self._change(layers, known)
                new |= {(position, name): layer for name, layer in changed.items()}
                kept |= {f"{position}.{name}": rest for name, rest in narrower.items()}
                del known  # gigabytes, which the next blocks need
        done = map_linears(middle, lambda p, name, _: new.get((p, name)), factors=False)
        return replace(done, kept=kept)

    def _change(
        self, layers: Mapping[str, nn.Module], known: Mapping[str, Statistics]
    ) -> tuple[dict[str, nn.Module], dict[str, Kept]]:
        new: dict[str, nn.Module] = {}
        kept: dict[str, Kept] = {}
        if self.attention < 1:
            for name in filter(is_attention, layers):
                new[name] = fewer_values(layers[name], known[name], self.attention, self.weight)
        rest = [name for name in layers if not is_attention(name)]
        if self.feed_forward < 1 and rest:
            own = {name: layers[name] for name in rest}
            narrower, kept = fewer_channels(own, known, self.feed_forward, self.weight)
            new |= narrower
        return new, kept


def fewer_values(layer: nn.Module, known: Statistics, keep: float, weight: float) -> nn.Module:
    """A layer with the singular values of highest score, of ``keep`` times its parameters."""
    full = matrix(layer)
    u, s, v = decompose(full)
    count = min(len(s), max(1, math.floor(keep * full.numel() / sum(full.shape))))
    scores = combine(*value_terms(u, s, v, known), weight)
    scores[: min(count, math.ceil(PROTECTED * len(s)))] = math.inf
    chosen = scores.topk(count).indices.sort().values
    root = s[chosen].sqrt()
    return factorised(layer, u[:, chosen] * root, root[:, None] * v[chosen])


def value_terms(
    u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, known: Statistics
) -> tuple[torch.Tensor, torch.Tensor]:
    """``|H d|_1`` and ``g.d`` of each singular value, where ``d = -s u v'`` and ``H d = G d A``."""
    curvature = s * (known.g @ u).abs().sum(0) * (v @ known.a).abs().sum(1)
    return curvature, -s * (u * (known.gradient @ v.T)).sum(0)


def fewer_channels(
    layers: Mapping[str, nn.Module], known: Mapping[str, Statistics], keep: float, weight: float
) -> tuple[dict[str, nn.Module], dict[str, Kept]]:
    """Feed-forward layers with the channels of highest score, and what each has kept.

    ``layers`` are those of one feed-forward in order: one or two that rise to the channels (or one
    fused pair of twice as many outputs), and last the one that falls back.

    Raises:
        OffsiteError: a feed-forward of another shape, such as a mixture of experts.
    """
    rising, falling = split_feed_forward(layers, "GradOT")
    channels = matrix(layers[falling]).shape[1]
    curvature = gradient = torch.zeros(())
    for name in layers:
        more, slope = channel_terms(matrix(layers[name]), known[name], falling=name == falling)
        curvature = curvature.to(more) + more.view(-1, channels).sum(0)
        gradient = gradient.to(slope) + slope.view(-1, channels).sum(0)
    count = max(1, round(keep * channels))
    chosen = combine(curvature, gradient, weight).topk(count).indices.sort().values
    cut = cut_channels(layers, rising, falling, chosen)
    return {n: layer for n, (layer, _) in cut.items()}, {n: kept for n, (_, kept) in cut.items()}


def channel_terms(
    weight: torch.Tensor, known: Statistics, *, falling: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``|H d|_1`` and ``g.d`` of removing each row (or column, if ``falling``) of a matrix."""
    if falling:
        curvature = (known.g @ weight).abs().sum(0) * known.a.abs().sum(0)
        return curvature, -(known.gradient * weight).sum(0)
    curvature = known.g.abs().sum(1) * (weight @ known.a).abs().sum(1)
    return curvature, -(known.gradient * weight).sum(1)


def combine(curvature: torch.Tensor, gradient: torch.Tensor, weight: float) -> torch.Tensor:
    """The score, both terms normalised; the highest stay."""
    tiny = torch.finfo(curvature.dtype).tiny
    first = curvature / curvature.sum().clamp_min(tiny)
    return first - weight * gradient / gradient.abs().sum().clamp_min(tiny)
