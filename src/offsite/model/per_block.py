"""Tensors outside the block list that hold one part for every block, such as Gemma 3n's inputs.

Where blocks are left out, such a tensor keeps the parts of those that stay. Which tensors these are
is read from the model itself: their shape follows the number of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

Shapes = Mapping[str, Sequence[int]]


def find_parts(full: Shapes, cut: Shapes, total: int, count: int) -> dict[str, int]:
    """The dimension in which each tensor holds its parts, for those that have some.

    Args:
        full, cut: shapes by name, with ``total`` blocks and with ``count``.
    """
    found = {}
    for name in full.keys() & cut.keys():
        before, after = tuple(full[name]), tuple(cut[name])
        if before == after or len(before) != len(after):
            continue
        changed = [i for i, size in enumerate(before) if size != after[i]]
        if len(changed) == 1 and before[changed[0]] * count == after[changed[0]] * total:
            found[name] = changed[0]
    return found


def take_parts(tensor: torch.Tensor, dim: int, total: int, source: Sequence[int]) -> torch.Tensor:
    """The parts of the blocks ``source`` of a tensor that holds ``total`` parts side by side."""
    index = torch.tensor(list(source), device=tensor.device)
    split = torch.unflatten(tensor, dim, (total, -1))
    return split.index_select(dim, index).flatten(dim, dim + 1)


def cut_ends(model: Any, built: nn.Module, total: int, source: Sequence[int]) -> None:
    """Leave the parts of the blocks ``source`` in a model's tensors, in place.

    Args:
        model: one whose block list is empty for now.
        built: the model that transformers builds with the blocks ``source`` alone.
        total: how many blocks the tensors of ``model`` have parts of.
    """
    own = dict(model.named_parameters())
    cut = {name: tensor.shape for name, tensor in built.named_parameters()}
    shapes = {name: tensor.shape for name, tensor in own.items()}
    for name, dim in find_parts(shapes, cut, total, len(source)).items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        new = take_parts(own[name].detach(), dim, total, source)
        setattr(module, leaf, nn.Parameter(new, requires_grad=own[name].requires_grad))
        for key in ("out_features", "embedding_dim"):
            if getattr(module, key, None) == own[name].shape[dim]:
                setattr(module, key, new.shape[dim])
