"""Merge a delta into copies of a model's parameters; the model stays unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from offsite.deltas.method import Method
from offsite.exchange.contract import check_entries
from offsite.model.blocks import block_parameters, with_own_blocks
from offsite.model.tensors import describe


def merged_tensors(
    model: nn.Module, method: Method, adapter: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What a merging delta makes of a model: new values (float32) of the parameters it changes.

    ``model`` stays as it is.

    Raises:
        OffsiteError: a method that does not merge, or tensors that do not fit.
    """
    attached, given = method.attach(with_own_blocks(model, adapter), adapter), describe(tensors)
    attached.model.eval()
    check_entries(given, attached.expected(given))
    attached.load(tensors)
    original = block_parameters(model, adapter)
    return {
        name: value.detach()
        for name, value in block_parameters(attached.merge(), adapter).items()
        if not torch.equal(value, original[name].float())
    }
