"""Models that an attacker builds from an offer without training.

A *rebuilding* maps positions of the full model to blocks. The attacker is given the positions. An
offer does not say them, but they can be guessed well, so this errs on the side of the attacker.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.exchange.offer import Offer
from offsite.exchange.offer_record import OfferRecord
from offsite.lab.baselines import trainable
from offsite.model.blocks import assemble, get_blocks

Blocks = Mapping[int, nn.Module]
FACTORS = (0.95, 0.9, 0.8, 0.65)  # 1 / (1 + s^2) undoes noise of scale s on average
SCALES = (0.25, 0.5, 1.0)  # of noise, over the root mean square of a matrix
STEPS = (1.0, 2.0)  # beyond one offer, away from another: 3A - 2B is a step of 2


def shipped(offer: Offer, entry: OfferRecord) -> dict[int, nn.Module]:
    """The blocks of an offer at their positions, in float32, quantised layers made dense."""
    places = sorted((*entry.adapter, *entry.middle))
    return dict(zip(places, get_blocks(trainable(offer.model)), strict=True))


def build(full: nn.Module, blocks: Blocks) -> nn.Module:
    """A model of the full model's ends, which every offer ships, around rebuilt blocks."""
    model = assemble(full, list(blocks.values()), list(blocks))
    return copy.deepcopy(model).float().eval()


def changed(
    blocks: Blocks, adapter: Sequence[int], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[int, nn.Module]:
    """The blocks with the matrices of the middle changed."""
    found = {}
    for position, block in blocks.items():
        found[position] = block
        if position not in adapter:
            found[position] = copy.deepcopy(block)
            for module in found[position].modules():
                if isinstance(module, (nn.Linear, Conv1D)):
                    module.weight.data = change(module.weight.data)
    return found


def shrunk(weight: torch.Tensor, scale: float) -> torch.Tensor:
    """A noisy matrix with its singular values shrunk (Gavish and Donoho, arXiv 1405.7511, eq. 7).

    Args:
        weight: (m, n), signal and noise.
        scale: the noise's root mean square over the signal's.
    """
    sigma = float(weight.square().mean().sqrt()) * scale / (1 + scale**2) ** 0.5
    small, large = sorted(weight.shape)
    beta, unit = small / large, sigma * large**0.5
    if unit == 0:
        return weight
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    y = values / unit
    inside = ((y**2 - beta - 1).clamp_min(0) ** 2 - 4 * beta).clamp_min(0).sqrt() / y
    kept = torch.where(y > 1 + beta**0.5, inside, torch.zeros_like(y)) * unit
    result: torch.Tensor = (left * kept) @ right
    return result


def combined(views: Sequence[tuple[Blocks, OfferRecord]]) -> Iterator[dict[int, nn.Module]]:
    """Rebuildings from several offers of one model: what is verbatim in any, the mean of the rest.

    For every pair also points beyond one offer on the line from the other: two offers with noise
    of one key and two scales give the weights back so.
    """
    places = sorted({position for blocks, _ in views for position in blocks})
    yield {p: _merged(p, views, None) for p in places}
    for first in range(len(views)):
        for second in range(len(views)):
            if first != second:
                for step in STEPS:
                    yield {p: _merged(p, views, (first, second, step)) for p in places}


def _merged(
    position: int,
    views: Sequence[tuple[Blocks, OfferRecord]],
    line: tuple[int, int, float] | None,
) -> nn.Module:
    having = [(index, view) for index, view in enumerate(views) if position in view[0]]
    for _, (blocks, entry) in having:
        if position in entry.adapter:
            return blocks[position]
    result = copy.deepcopy(having[-1][1][0][position])
    for name, parameter in result.named_parameters():
        found = {}
        for index, (blocks, entry) in having:
            other = dict(blocks[position].named_parameters()).get(name)
            if other is not None and other.shape == parameter.shape:
                if entry.verbatim_tensors.get(f"{position}.{name}") == other.numel():
                    found = {index: other.data}
                    break
                found[index] = other.data
        if line is not None and line[0] in found and line[1] in found:
            near, far, step = found[line[0]], found[line[1]], line[2]
            parameter.data = near + step * (near - far)
        else:
            parameter.data = torch.stack(list(found.values())).mean(0)
    return result


def filled(blocks: Blocks, total: int, source: Sequence[nn.Module] | None = None) -> Blocks:
    """Blocks at every position: gaps take those of a public base, or copies of the nearest."""
    found = {}
    for position in range(total):
        if position in blocks:
            found[position] = blocks[position]
        elif source is not None:
            found[position] = copy.deepcopy(source[position]).float()
        else:
            nearest = min(blocks, key=lambda p: abs(p - position))
            found[position] = copy.deepcopy(blocks[nearest])
    return found


def based(
    blocks: Blocks, adapter: Sequence[int], source: Sequence[nn.Module]
) -> dict[int, nn.Module]:
    """The adapter as shipped, and a public base's blocks with the shipped vectors elsewhere."""
    found = {}
    for position, block in enumerate(source):
        found[position] = copy.deepcopy(block).float()
        if position in adapter:
            found[position] = blocks[position]
        elif position in blocks:
            given = dict(blocks[position].named_parameters())
            for name, parameter in found[position].named_parameters():
                if name in given and parameter.dim() == 1 == given[name].dim():
                    parameter.data = given[name].data
    return found
