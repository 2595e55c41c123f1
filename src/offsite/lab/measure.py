"""Measure costs: seconds, peak memory, bytes that are sent."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from offsite.exchange.offer import Offer
from offsite.exchange.offer_record import OfferRecord
from offsite.exchange.side import sides_of
from offsite.files import folder_files
from offsite.model.blocks import get_blocks


def offer_bytes(offer: Offer) -> int:
    """Bytes of an offer's tensors; what is tied or shared counts once."""
    seen = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for tensor in offer.model.state_dict(keep_vars=True).values()
    }
    size: int = sum(seen.values())
    return size + sum(group.bytes for group in sides_of(offer.model).values())


def middle_bytes(offer: Offer) -> int:
    """Bytes of an offer's middle; shared tensors count once."""
    adapter = offer.manifest.adapter
    seen = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for index, block in enumerate(get_blocks(offer.model))
        for tensor in block.state_dict(keep_vars=True).values()
        if index not in adapter
    }
    return sum(seen.values())


def middle_bytes_full(model: nn.Module, entry: OfferRecord) -> int:
    """Bytes of the whole middle of the model."""
    return sum(
        parameter.numel() * parameter.element_size()
        for index, block in enumerate(get_blocks(model))
        for parameter in block.parameters()
        if index not in entry.adapter
    )


@contextmanager
def measured(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds and peak memory (bytes) of a block, as a dictionary filled at its end."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak()
    start, cost = time.perf_counter(), {"seconds": 0.0, "memory": 0.0}
    yield cost
    cost["seconds"] = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    cost["memory"] = float(torch.cuda.max_memory_allocated(device) if cuda else peak)


def reset_peak() -> None:
    """Let the process's peak memory count anew from now, where the system can: Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def folder_bytes(folder: str | Path) -> int:
    """Bytes of a flat folder's files."""
    return sum(folder_files(folder).values())
