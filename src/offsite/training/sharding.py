"""Spread the frozen blocks of a model over the processes that train it, by FSDP2.

A tuned block is trained by every process on its own rows, as in DDP, so checkpoints, deltas and
optimisers know nothing of this. Only what is frozen is spread: each process holds an equal part of
every frozen block, and a block is whole only while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from offsite.errors import OffsiteError
from offsite.model.blocks import alias
from offsite.model.layers import QuantisedLinear
from offsite.training.options import TrainOptions
from offsite.training.processes import process_count
from offsite.training.tunable import frozen_blocks

ROOM = 0.5  # share of a device's memory that frozen weights may take before they are spread


def should_shard(
    options: TrainOptions, model: nn.Module, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether to spread the frozen blocks: what the options say, or whether memory asks for it.

    Memory asks for it where the frozen weights would take more than half of each GPU. Weights in
    float8 are not spread.
    """
    if options.shard is not None:
        return options.shard
    if options.precision == "float8" or process_count() < 2 or device.type != "cuda":
        return False
    size = sum(p.numel() for p in model.parameters() if not p.requires_grad) * dtype.itemsize
    size += sum(buffer.nbytes for buffer in model.buffers())  # packed weights are some
    return size > ROOM * torch.cuda.get_device_properties(device).total_memory


@contextmanager
def sharded(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Within the ``with``, each process holds its part of every frozen block of ``model``.

    Blocks move to the device one at a time. All processes must run the same forward passes.

    Args:
        dtype: to hold their floating-point weights in; None for their own.

    Raises:
        OffsiteError: there is one process alone.
    """
    if process_count() < 2:
        raise OffsiteError(
            "--shard needs several processes; start them with 'torchrun --nproc-per-node 2 -m "
            "offsite ...', or leave out --shard."
        )
    count = PartialState(cpu=device.type == "cpu").num_processes
    mesh = init_device_mesh(device.type, (count,))
    whole: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent, name, block in frozen_blocks(model):
            if not any(p.is_floating_point() for p in block.parameters()):
                continue
            spread = alias(block)
            for module in spread.modules():
                for key, parameter in module.named_parameters(recurse=False):
                    value = parameter.data
                    if dtype is not None and value.is_floating_point():
                        value = value.to(dtype)
                    setattr(module, key, nn.Parameter(value, requires_grad=False))
                if isinstance(module, QuantisedLinear):  # its packed weight is a buffer
                    for key, packed in list(module.named_buffers(recurse=False)):
                        setattr(module, key, nn.Parameter(packed, requires_grad=False))
            whole.append((parent, name, block))
            setattr(parent, name, fully_shard(spread, mesh=mesh))
        yield
    finally:
        for parent, name, block in whole:
            setattr(parent, name, block)


def shard_root(root: nn.Module) -> None:
    """Let one module lead the spread blocks inside it, so that the next is fetched ahead."""
    if any(isinstance(module, FSDPModule) for module in root.modules()):
        own = {p for m in root.modules() for p in m._parameters.values() if p is not None}
        fully_shard(root, ignored_params=own)
