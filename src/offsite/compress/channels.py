"""Keep some rows and columns of linear layers, and record which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from offsite.compress.linears import linears, matrix, with_matrix
from offsite.errors import OffsiteError
from offsite.model.split import Kept


def cut_rows(layer: nn.Module, rows: torch.Tensor) -> tuple[nn.Module, Kept]:
    """A layer with only the outputs ``rows`` (ascending), its bias included."""
    new, bias = with_matrix(layer, matrix(layer)[rows]), layer.bias
    if isinstance(bias, torch.Tensor):
        new.bias = nn.Parameter(bias.detach()[rows].clone(), bias.requires_grad)
    return new, Kept(rows=tuple(rows.tolist()))


def cut_columns(layer: nn.Module, columns: torch.Tensor) -> tuple[nn.Module, Kept]:
    """A layer with only the inputs ``columns`` (ascending); its bias stays whole."""
    return with_matrix(layer, matrix(layer)[:, columns]), Kept(columns=tuple(columns.tolist()))


def split_feed_forward(layers: Mapping[str, nn.Module], step: str) -> tuple[list[str], str]:
    """Names of the linear layers that rise to the channels, and of the one that falls back.

    One or two rise, or one fused pair of twice as many outputs.

    Args:
        layers: the linear layers of one feed-forward, in order.
        step: who asks, for the message.

    Raises:
        OffsiteError: a feed-forward of another shape, such as a mixture of experts.
    """
    *rising, falling = layers
    channels = matrix(layers[falling]).shape[1]
    sizes = {matrix(layers[name]).shape[0] for name in rising}
    if not 1 <= len(rising) <= 2 or not sizes <= {channels, 2 * channels}:
        raise OffsiteError(
            f"{step} knows feed-forwards of two linear layers, or three where one is a gate; this "
            "model has another kind, so set feed_forward to 1."
        )
    return rising, falling


def cut_channels(
    layers: Mapping[str, nn.Module], rising: Sequence[str], falling: str, chosen: torch.Tensor
) -> dict[str, tuple[nn.Module, Kept]]:
    """The layers of a feed-forward with only its channels ``chosen`` (ascending)."""
    channels = matrix(layers[falling]).shape[1]
    cut = {falling: cut_columns(layers[falling], chosen)}
    for name in rising:
        starts = range(0, matrix(layers[name]).shape[0], channels)
        cut[name] = cut_rows(layers[name], torch.cat([chosen + start for start in starts]))
    return cut


def check_same(original: nn.Module, layers: Mapping[str, nn.Module], step: str) -> None:
    """Refuse a block whose linear layers were changed in size."""
    sizes = {name: matrix(layer).shape for name, layer in linears(original)}
    odd = [name for name, layer in layers.items() if matrix(layer).shape != sizes.get(name)]
    if odd:
        raise OffsiteError(
            f"{step} measures the model's own layers, but an earlier step made '{odd[0]}' smaller; "
            f"put '{step}' before it."
        )
