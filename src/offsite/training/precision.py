"""The precision of training: frozen parameters in half the bytes, trained ones in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from offsite.errors import OffsiteError
from offsite.model.checkpoint import DTYPES
from offsite.training.options import TrainOptions
from offsite.training.sharding import sharded

RECOMPUTED = ".parametrizations."  # torch's place for a weight to which a difference is added


def native_precision(device: torch.device) -> str:
    """``"bfloat16"`` on a GPU that computes in it, else ``"float32"``."""
    gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if gpu else "float32"


def weight_dtype(precision: str) -> torch.dtype:
    """In which dtype frozen weights are held that are computed with in a precision."""
    return torch.bfloat16 if precision == "float8" else DTYPES[precision]


def with_precision(options: TrainOptions, device: torch.device) -> TrainOptions:
    """The options with a precision, where they leave it to the device."""
    return replace(options, precision=options.precision or native_precision(device))


def choose_precision(precision: str | None, dtype: torch.dtype | None, device: torch.device) -> str:
    """The precision to train in, where one, both or none of precision and dtype are given.

    Args:
        precision: of the computation; None to follow ``dtype``, and then the device.
        dtype: of the frozen weights; None to follow the precision.

    Raises:
        OffsiteError: weights in half precision, but another precision to compute in.
    """
    half = next((k for k, v in DTYPES.items() if v == dtype and v != torch.float32), None)
    if half and precision is not None and weight_dtype(precision) != dtype:
        raise OffsiteError(
            f"Weights in {half} cannot be trained with --precision {precision}; use {half} for "
            "both, or leave out --dtype."
        )
    return precision or half or native_precision(device)


@contextmanager
def in_precision(
    model: nn.Module, dtype: torch.dtype, device: torch.device, shard: bool = False
) -> Iterator[None]:
    """Move a model to a device: what is frozen in ``dtype``, what trains in float32.

    A weight to which a trained difference is added stays in float32 too, since the delta
    holds the sum, and so does the weight of a norm whose bias trains. At the end the frozen
    parameters are the same tensors as before; those that trained stay.

    Args:
        shard: spread the frozen blocks over the processes of torchrun.
    """
    with sharded(model, device, dtype) if shard else nullcontext():
        yield from _held(model, dtype, device)


def _held(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    frozen: list[tuple[nn.Parameter, torch.Tensor]] = []
    # blocks may share a tensor's memory
    casts: dict[tuple[int, torch.Size, torch.dtype], torch.Tensor] = {}
    beside = beside_trained(model)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or isinstance(parameter, DTensor):
            continue  # what is spread is on its device
        before = parameter.data
        if parameter.requires_grad:
            parameter.data = before.to(device, torch.float32)
        elif RECOMPUTED not in name:
            frozen.append((parameter, before))
            own = torch.float32 if parameter in beside else dtype
            key = (before.data_ptr(), before.shape, own)
            casts[key] = casts.get(key, before).to(device, own)
            parameter.data = casts[key]
    try:
        model.to(device)
        yield
    finally:
        for parameter, before in frozen:
            parameter.data = before


def beside_trained(model: nn.Module) -> set[nn.Parameter]:
    """Frozen vectors of modules in which another parameter trains.

    A norm whose bias trains and whose weight does not is computed with both in one precision.
    """
    return {
        parameter
        for module in model.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 1 and not parameter.requires_grad
    }
