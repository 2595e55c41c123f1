"""Count the parameters of the middle that an emulator holds unchanged."""

from __future__ import annotations

import torch
from torch import nn

from offsite.model.split import Middle


def verbatim_tensors(full: nn.ModuleList, middle: Middle, native: torch.dtype) -> dict[str, int]:
    """Of each tensor of the middle, how many values are in the emulator unchanged.

    A tensor that is whole is counted whole, in the dtype it leaves in. Of one that was pruned the
    values left are counted, of one with rows or columns cut out those that stayed.

    Args:
        full: the blocks of the model.
        middle: the emulator's blocks, before they are rounded to ``native``.

    Returns:
        ``position.name`` to a count, for tensors with any.
    """
    same = {}
    for position, block in zip(middle.positions, middle.blocks, strict=True):
        original = dict(full[position].named_parameters())
        for name, tensor in block.named_parameters():
            name = name.replace(".up.bias", ".bias")  # of a low-rank layer
            if (other := original.get(name)) is None:
                continue
            if count := tensor.numel() if tensor is other else count_equal(tensor, other, native):
                same[f"{position}.{name}"] = count
    return same


def count_equal(tensor: torch.Tensor, original: torch.Tensor, native: torch.dtype) -> int:
    """How many entries of a tensor are its original's, in their place or their row or column."""
    tensor, original = tensor.detach(), original.detach()
    if tensor.shape == original.shape:
        if torch.equal(tensor.to(native), original.to(native)):
            return tensor.numel()
        return int(((tensor == original) & (tensor != 0)).sum())
    if tensor.dim() != original.dim() or tensor.dim() > 2:
        return 0
    if tensor.dim() == 2 and tensor.shape[1] != original.shape[1]:
        tensor, original = tensor.T, original.T
    if tensor.shape[1:] != original.shape[1:]:
        return 0
    known = {row.numpy().tobytes() for row in original.cpu().float().contiguous()}
    kept = [row for row in tensor.cpu().float().contiguous() if row.numpy().tobytes() in known]
    return sum(row.numel() for row in kept)
