"""Narrow blocks: fewer feed-forward channels and key/value groups (LoRAM, arXiv 2502.13533)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.compress.channels import (
    check_same,
    cut_channels,
    cut_columns,
    cut_rows,
    split_feed_forward,
)
from offsite.compress.linears import linears, map_linears, matrix
from offsite.compress.step import Context, Needs
from offsite.errors import OffsiteError, check_share
from offsite.model.blocks import get_blocks
from offsite.model.layers import is_attention
from offsite.model.replay import forward
from offsite.model.split import Kept, Middle
from offsite.training.progress import track

BATCHES, ROWS = 16, 8
Cut = dict[str, tuple[nn.Module, Kept]]


@dataclass(frozen=True)
class Narrow:
    """Keep all blocks of the middle, each with only its most used channels and groups.

    A channel's importance is the root mean square of its activation on the owner's data times the
    norm of the weights that read it (Wanda, arXiv 2306.11695, summed over outputs). That of a
    key/value group is the norm of the same over all query heads that share it. LoRAM ranks by
    gradients instead. The record says what is left of each layer, so that a low-rank change of a
    narrow layer can be scattered back into the full one. Narrow layers are layers of the
    allow-list, because a family's configuration cannot describe blocks of two widths.

    Attributes:
        feed_forward: share of the channels kept, over 0 to 1; 1 leaves them whole.
        groups: share of the key/value groups kept, over 0 to 1, with the query heads that read
            them; 1 leaves attention whole.

    Raises:
        OffsiteError: no data of the owner, a feed-forward or an attention of unknown shape, or
            blocks that an earlier step changed in size.
    """

    feed_forward: float = 0.5
    groups: float = 1.0

    kind: ClassVar[str] = "narrow"

    def __post_init__(self) -> None:
        for share in (self.feed_forward, self.groups):
            check_share(share)

    @property
    def needs(self) -> Needs:
        """Calibration data, where something is cut."""
        cuts = min(self.feed_forward, self.groups) < 1
        return Needs(data=cuts, rows=BATCHES * ROWS if cuts else 0)

    def __call__(self, middle: Middle, context: Context) -> Middle:
        if self.feed_forward == self.groups == 1:
            return middle
        standing = dict(zip(middle.positions, middle.blocks, strict=True))
        layers = {
            position: dict(linears(block, factors=False)) for position, block in standing.items()
        }
        layers = {position: found for position, found in layers.items() if found}
        for position, found in layers.items():
            check_same(get_blocks(context.model)[position], found, self.kind)
            shape_of(standing[position], found, self)  # raises before anything is measured
        power = measure(context, layers)
        new: dict[tuple[int, str], nn.Module] = {}
        kept = dict(middle.kept)
        for position, found in layers.items():
            for name, (layer, left) in self._cut(
                standing[position], found, power[position]
            ).items():
                new[position, name] = layer
                kept[f"{position}.{name}"] = left
        done = map_linears(middle, lambda p, name, _: new.get((p, name)), factors=False)
        return replace(done, kept=kept)

    def _cut(
        self, block: nn.Module, layers: Mapping[str, nn.Module], power: Mapping[str, torch.Tensor]
    ) -> Cut:
        cut: Cut = {}
        rising, falling, attention = shape_of(block, layers, self)
        if self.feed_forward < 1:
            used = power[falling] * matrix(layers[falling]).square().sum(0)
            chosen = strongest(used, self.feed_forward)
            own = {name: layers[name] for name in (*rising, falling)}
            cut |= cut_channels(own, rising, falling, chosen)
        if attention is not None:
            used = power[attention.output] * matrix(layers[attention.output]).square().sum(0)
            chosen = strongest(used.view(attention.groups, -1).sum(1), self.groups)
            for name in attention.inputs:
                cut[name] = cut_rows(layers[name], attention.features(chosen, layers[name]))
            features = attention.features(chosen, layers[attention.output], inputs=True)
            cut[attention.output] = cut_columns(layers[attention.output], features)
        return cut


@dataclass(frozen=True)
class Attention:
    """Names of a block's attention layers, and how many key/value groups it has."""

    inputs: tuple[str, ...]
    output: str
    groups: int

    def features(
        self, chosen: torch.Tensor, layer: nn.Module, *, inputs: bool = False
    ) -> torch.Tensor:
        """The rows (or columns) of a layer that belong to the chosen groups, ascending."""
        size = matrix(layer).shape[1 if inputs else 0] // self.groups
        return (chosen[:, None] * size + torch.arange(size, device=chosen.device)).flatten()


def shape_of(
    block: nn.Module, layers: Mapping[str, nn.Module], step: Narrow
) -> tuple[list[str], str, Attention | None]:
    """The feed-forward's rising and falling layers, and the attention if it is to be cut.

    Raises:
        OffsiteError: a shape that the step cannot cut.
    """
    rising, falling = list[str](), ""
    if step.feed_forward < 1:
        rest = {name: layer for name, layer in layers.items() if not is_attention(name)}
        rising, falling = split_feed_forward(rest, "Narrow")
    if step.groups == 1:
        return rising, falling, None
    names = list(filter(is_attention, layers))
    owners = {name.rpartition(".")[0] for name in names}
    owner: Any = block.get_submodule(owners.pop()) if len(owners) == 1 else None
    head, shared = getattr(owner, "head_dim", None), getattr(owner, "num_key_value_groups", None)
    rows = [matrix(layers[name]).shape[0] for name in names]
    if len(names) != 4 or not head or not shared or rows[0] != shared * rows[1]:
        raise OffsiteError(
            "Narrow cuts attention of separate query, key, value and output projections in "
            "key/value groups, as in LLaMA, Mistral, Qwen and Gemma; this model has another kind, "
            "so set groups to 1."
        )
    return rising, falling, Attention(tuple(names[:3]), names[3], rows[1] // head)


def strongest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Indices of the largest values, ascending: a share of them, at least one."""
    count = max(1, round(share * len(values)))
    return values.topk(count).indices.sort().values


@torch.no_grad()
def measure(
    context: Context, layers: Mapping[int, Mapping[str, nn.Module]]
) -> dict[int, dict[str, torch.Tensor]]:
    """Mean square of every input of every layer in the full model, on the owner's data."""
    blocks = get_blocks(context.model)
    sums: dict[int, dict[str, torch.Tensor]] = {position: {} for position in layers}
    with ExitStack() as stack:
        for position, found in layers.items():
            for name in found:

                def hook(
                    module: nn.Module, args: tuple[torch.Tensor, ...],
                    position: int = position, name: str = name,
                ) -> None:  # fmt: skip
                    power = args[0].detach().float().flatten(0, -2).square().mean(0)
                    sums[position][name] = sums[position].get(name, 0) + power / BATCHES

                layer = blocks[position].get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(hook).remove)
        for batch in track(context.batches(BATCHES, ROWS), "measuring channels", BATCHES):
            forward(context.model, batch)
    return sums
