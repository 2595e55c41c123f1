"""CRaSh (arXiv 2310.15477): cluster the middle, remove all but one block of each cluster, share.

``[Cluster(keep=8), Share()]`` is the whole method; ``Share`` also follows any other way to drop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch

from offsite.compress.step import Context, Needs
from offsite.errors import OffsiteError, require
from offsite.model.blocks import alias, block_config, get_blocks
from offsite.model.replay import observe
from offsite.model.split import Middle
from offsite.training.progress import track

SAMPLES, ROWS = 256, 8
Similarity = Callable[[int, int], float]


@dataclass(frozen=True)
class Cluster:
    """Group neighbouring blocks of similar representation and keep the middle one of each group.

    A block's representation is its output, mean-pooled over the tokens, on a few hundred
    calibration samples (256 here). One cluster per block at the
    start; the adjacent pair of clusters whose touching blocks (last of the left, first of the
    right) have the highest linear CKA is merged until ``keep`` are left. Of an even number of
    blocks the earlier of the two in the middle is kept. Ours: clusters never reach across an
    adapter block.
    """

    keep: int

    kind: ClassVar[str] = "cluster"

    def __post_init__(self) -> None:
        require(self.keep >= 1, f"A recipe cannot keep {self.keep} middle blocks; use 1 or more.")

    @property
    def needs(self) -> Needs:
        """Calibration data."""
        return Needs(data=True, rows=SAMPLES)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        states = pooled_states(context, middle.positions)
        segments = [
            [p for p in middle.positions if p in segment] for segment in context.split.segments
        ]
        clusters = cluster(
            [s for s in segments if s],
            self.keep,
            lambda left, right: linear_cka(states[left], states[right]),
        )
        kept = tuple(members[(len(members) - 1) // 2] for members in clusters)
        return middle.at(kept)


@dataclass(frozen=True)
class Share:
    """Fill every removed position with the nearest remaining block, by reference.

    This restores the depth and costs no bytes, because a shared block is stored once. Blocks of the
    same run of middle blocks are preferred; of two equally near blocks the earlier is taken. Ours:
    in families with several kinds of attention (Gemma's sliding and full attention) a position is
    filled with a block of its own kind, or stays empty.
    """

    kind: ClassVar[str] = "share"

    @property
    def needs(self) -> Needs:
        """Nothing but the middle."""
        return Needs()

    def __call__(self, middle: Middle, context: Context) -> Middle:
        types = layer_types(context)
        standing = dict(zip(middle.positions, middle.blocks, strict=True))
        filled, kept = dict(standing), dict(middle.kept)
        for segment in context.split.segments:
            for hole in segment:
                near = [p for p in standing if types[p] == types[hole]]
                if hole not in standing and near:
                    best = min(near, key=lambda p: (p not in segment, abs(p - hole), p))
                    filled[hole] = alias(standing[best])
                    kept |= {
                        f"{hole}.{name.partition('.')[2]}": layer
                        for name, layer in middle.kept.items()
                        if name.startswith(f"{best}.")
                    }
        order = tuple(sorted(filled))
        return Middle(tuple(filled[p] for p in order), order, kept)


def layer_types(context: Context) -> list[Any]:
    """The kind of attention of each block of the model, all None where the family has only one."""
    total = len(get_blocks(context.model))
    return list(getattr(block_config(context.model), "layer_types", None) or [None] * total)


@torch.no_grad()
def pooled_states(context: Context, positions: Sequence[int]) -> dict[int, torch.Tensor]:
    """Output of each block, mean-pooled over tokens: position to (samples, hidden), float64."""
    rows: dict[int, list[torch.Tensor]] = {position: [] for position in positions}
    count = SAMPLES // ROWS
    for batch in track(context.batches(count, ROWS), "comparing blocks", count):
        calls = observe(context.model, batch, positions)
        for position in positions:
            call = calls[position]
            state = call.output.double()
            weight = state.new_ones(state.shape[:2]) if call.real is None else call.real.double()
            rows[position].append((state * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))
    return {position: torch.cat(parts) for position, parts in rows.items()}


def linear_cka(left: torch.Tensor, right: torch.Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same n samples, 0..1.

    ``|Y'X|^2 / (|X'X| |Y'Y|)`` in Frobenius norms, columns centred (Kornblith et al., 2019),
    computed from the n by n Gram matrices, which is the same number.
    """
    left, right = left - left.mean(0), right - right.mean(0)
    first, second = left @ left.T, right @ right.T
    denominator = first.norm() * second.norm()
    return float((first * second).sum() / denominator) if denominator else 0.0


def cluster(
    segments: Sequence[Sequence[int]], keep: int, similarity: Similarity
) -> list[list[int]]:
    """Merge the most similar neighbours until ``keep`` clusters are left, ascending.

    Raises:
        OffsiteError: more clusters asked than blocks, or fewer than separate runs of them.
    """
    total = sum(map(len, segments))
    if not len(segments) <= keep <= total:
        raise OffsiteError(
            f"Cannot make {keep} clusters of {total} middle blocks in {len(segments)} runs; "
            f"choose {len(segments)} to {total}."
        )
    runs = [[[position] for position in segment] for segment in segments]
    values = {(a, b): similarity(a, b) for segment in segments for a, b in pairwise(segment)}
    while sum(map(len, runs)) > keep:
        pairs = [(run, i) for run in runs for i in range(len(run) - 1)]
        run, i = max(pairs, key=lambda pair: values[pair[0][pair[1]][-1], pair[0][pair[1] + 1][0]])
        run[i : i + 2] = [run[i] + run[i + 1]]
    return [members for run in runs for members in run]
