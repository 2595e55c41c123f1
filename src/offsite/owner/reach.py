"""Deltas that tune all blocks: which offers accept them, and how they fit the full model.

Where a recipe made a layer narrower, the delta's factors are as narrow; they are scattered back
into zeros at the indices that the record has kept (LoRAM, arXiv 2502.13533).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from offsite.deltas.targets import linears
from offsite.errors import OffsiteError
from offsite.model.layers import Harmonizer, linear_shape
from offsite.model.split import Kept, Middle
from offsite.model.tensors import TensorEntry

Cuts = Mapping[str, tuple[int, tuple[int, ...]]]  # of a tensor: which axis, which indices are left


def check_reach(full: nn.ModuleList, middle: Middle) -> None:
    """Refuse a middle of which the full model has no counterpart, layer by layer.

    Raises:
        OffsiteError: a harmonizer, or a layer that changed its size without saying what it kept.
    """
    for position, block in zip(middle.positions, middle.blocks, strict=True):
        if isinstance(block, Harmonizer):
            raise OffsiteError(
                f"Block {position} is a harmonizer, which the model does not have, so a change to "
                "it cannot be plugged; leave out --reach all, or the step 'layer_replace'."
            )
        for name, layer in linears(block):
            own = linear_shape(full[position].get_submodule(name)) or ()
            left = middle.kept.get(f"{position}.{name}", Kept())
            expected = tuple(
                size if indices is None else len(indices)
                for size, indices in zip(own, (left.rows, left.columns), strict=False)
            )
            if linear_shape(layer) != expected:
                raise OffsiteError(
                    f"The recipe made '{name}' of block {position} smaller and did not record "
                    "what it kept, so a change to it cannot be plugged; leave out --reach all."
                )


def narrowed(entries: Mapping[str, TensorEntry], cuts: Cuts) -> dict[str, TensorEntry]:
    """The entries that a delta has where the emulator's layers are narrower."""
    return {
        name: TensorEntry(dtype=entry.dtype, shape=_with(entry.shape, *cuts[name]))
        if name in cuts
        else entry
        for name, entry in entries.items()
    }


def _with(shape: tuple[int, ...], axis: int, indices: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:axis], len(indices), *shape[axis + 1 :])


def widened(
    tensors: Mapping[str, torch.Tensor], entries: Mapping[str, TensorEntry], cuts: Cuts
) -> dict[str, torch.Tensor]:
    """The tensors in the sizes of the full model's ``entries``, zero where a layer was cut."""
    wide = dict(tensors)
    for name, (axis, indices) in cuts.items():
        value = tensors[name]
        empty = value.new_zeros(entries[name].shape)
        wide[name] = empty.index_copy(axis, torch.tensor(indices, device=value.device), value)
    return wide
