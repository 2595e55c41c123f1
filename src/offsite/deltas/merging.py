"""What a merging delta makes of a model's parameters, with the model left as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from offsite.deltas.method import Method
from offsite.exchange.contract import check_entries
from offsite.model.blocks import block_path, get_blocks, with_own_blocks
from offsite.model.tensors import describe


def merged_tensors(
    model: nn.Module, method: Method, adapter: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What a merging delta makes of a model: new values (float32) of the parameters it changes.

    ``model`` stays as it is.

    Raises:
        OffsiteError: a method that does not merge, or tensors that do not fit.
    """
    original = get_blocks(model)
    attached, given = method.attach(with_own_blocks(model, adapter), adapter), describe(tensors)
    attached.model.eval()
    check_entries(given, attached.expected(given))
    attached.load(tensors)
    merged, path = get_blocks(attached.merge()), block_path(model)
    return {
        f"{path}.{index}.{name}": value.detach()
        for index in adapter
        for name, value in merged[index].named_parameters()
        if not torch.equal(value, original[index].get_parameter(name).float())
    }
