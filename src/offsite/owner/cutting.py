"""Cut a model into adapter and middle, in memory or from disk."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.compress.step import Step, plan
from offsite.exchange.side import side_modules
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import Adapter, Middle, Split, emulator_layout, make_split, whole_middle
from offsite.model.stored import model_fingerprint
from offsite.training.progress import say

CONTAINER = tuple(
    Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")
)
ROOM = 0.7  # share of a machine's memory that a model in float32 may take


@dataclass(frozen=True)
class Cut:
    """A model cut into adapter and middle, before compression.

    Attributes:
        model: the model, of the blocks that were read.
        split: which blocks of the full model are adapter.
        middle: the blocks between them now.
        rest: steps remain that need the whole model.
        native: the dtype that the weights came in.
        other_dtypes: tensors that came in another floating-point dtype, by name without block
            index; transformers keeps some tensors of a few families in float32.
        fingerprint: of the full model.
        middle_parameters, model_bytes: the sizes of the full model.
    """

    model: Any
    split: Split
    middle: Middle
    rest: bool
    native: torch.dtype
    other_dtypes: frozenset[str]
    fingerprint: str
    middle_parameters: int
    model_bytes: int


def sizes(skeleton: nn.Module, split: Split, native: torch.dtype) -> tuple[int, int]:
    """Parameters of the middle, and bytes of the whole model."""
    blocks = get_blocks(skeleton)
    middle = sum(p.numel() for i in split.middle for p in blocks[i].parameters())
    return middle, sum(p.numel() for p in skeleton.parameters()) * native.itemsize


def cut_checkpoint(
    checkpoint: Checkpoint,
    adapter: Adapter,
    recipe: Sequence[Step],
    seed: int,
    dtype: torch.dtype | None,
) -> Cut:
    """A checkpoint cut by reading only the blocks that the recipe needs."""
    skeleton = checkpoint.skeleton
    split = make_split(adapter, checkpoint.total)
    kept, rest = plan(recipe, split.middle, seed)
    planned = not rest
    order = emulator_layout(split, kept)[0]
    model = checkpoint.load(keep=order if planned else None)
    native = next(model.parameters()).dtype
    if not planned:
        model = model.to(dtype or working_dtype(skeleton, native))
    blocks = get_blocks(model)
    middle = (
        Middle(tuple(blocks[order.index(p)] for p in kept), kept)
        if planned
        else whole_middle(model, split)
    )
    return Cut(
        model, split, middle, not planned, native, other_dtypes(skeleton, native),
        checkpoint.fingerprint,
        *sizes(skeleton, split, native),
    )  # fmt: skip


def working_dtype(skeleton: nn.Module, native: torch.dtype) -> torch.dtype:
    """float32, or the dtype the weights came in where float32 does not fit into memory.

    Weights in their own dtype are mapped from the checkpoint: the system reads a block when it
    computes and drops it when memory is short. Single layers are computed in float32 either way.
    """
    size, room = sum(p.numel() for p in skeleton.parameters()) * 4, available_memory()
    if native == torch.float32 or size <= ROOM * room:
        return torch.float32
    say(
        f"In float32 the model takes {size / 1e9:.1f} GB, too much for the {room / 1e9:.1f} GB of "
        f"memory here; its weights stay in {str(native).removeprefix('torch.')} and on disk. Give "
        "--dtype float32 to compute in float32 anyway."
    )
    return native


def available_memory() -> float:
    """Bytes of memory that this process may have; infinite where the system does not say.

    A container or a limit of the process (``ulimit -d`` or ``-v``) may leave less than the machine
    has.
    """
    found = [math.inf]
    with suppress(AttributeError, ValueError, OSError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for file in CONTAINER:
        with suppress(ValueError, OSError):  # "max" where there is no limit
            found.append(float(file.read_text()))
    with suppress(ImportError):  # not on Windows
        import resource

        limits = (
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)
        )
        found += [float(limit) for limit in limits if limit != resource.RLIM_INFINITY]
    return min(found)


def cut_module(model: nn.Module, adapter: Adapter) -> Cut:
    """A model in memory, cut; its blocks are shared, not copied."""
    split = make_split(adapter, len(get_blocks(model)))
    native = next(model.parameters()).dtype
    return Cut(
        model, split, whole_middle(model, split), True, native, other_dtypes(model, native),
        model_fingerprint(model),
        *sizes(model, split, native),
    )  # fmt: skip


def block_pattern(name: str) -> str:
    """The name of a tensor with a star for every index in it."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def other_dtypes(model: nn.Module, native: torch.dtype) -> frozenset[str]:
    """The floating-point tensors of a model in another dtype than ``native``, for any block."""
    return frozenset(
        block_pattern(name)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and tensor.dtype != native
    )


def to_native(emulator: nn.Module, cut: Cut) -> None:
    """Give an emulator the dtypes of its model, in place; side tensors keep their own."""
    kept = {id(buffer) for group in side_modules(emulator).values() for buffer in group.buffers()}
    for name, tensor in (*emulator.named_parameters(), *emulator.named_buffers()):
        if id(tensor) in kept:
            continue
        if tensor.is_floating_point() and block_pattern(name) not in cut.other_dtypes:
            tensor.data = tensor.data.to(cut.native)
