"""Choose the device, and save and restore its random generators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offsite.errors import OffsiteError
from offsite.training.processes import local_rank

# what accelerate takes for the rank of a process and their number, whoever set it
RANKS = ("RANK", "RANKID", "WORLD_SIZE", "PMI_SIZE")
ACCELERATE = "ACCELERATE_TORCH_DEVICE"  # the variable that names accelerate's device


def available_accelerator() -> torch.device | None:
    """The accelerator of this machine; None if torch was built for one and there is none."""
    if not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_accelerator()


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the accelerator if there is one, or the CPU.

    Each of several processes that torchrun starts on one host takes an accelerator of its own.

    Raises:
        OffsiteError: the device does not exist here.
    """
    if name is None:
        own = local_rank()
        if own is not None and own < torch.accelerator.device_count():
            torch.accelerator.set_device_index(own)
        return available_accelerator() or torch.device("cpu")
    try:
        torch.empty(1, device=name).item()  # the device 'meta' holds no values
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise OffsiteError(f"There is no device '{name}' here; try --device cpu.") from error


@contextmanager
def accelerate_on(device: torch.device) -> Iterator[None]:
    """Within the ``with``, accelerate uses this device and no other variable of the environment.

    Its own variables choose a precision or a framework, and those of schedulers and MPI say that
    other processes take part; a run must not depend on them. Those of torchrun stay.
    """
    foreign = [key for key in os.environ if key.startswith("ACCELERATE_")]
    if local_rank() is None:
        foreign += [key for key in os.environ if key.endswith(RANKS)]
    hidden = {key: os.environ.pop(key) for key in foreign}
    if device.index is not None:
        os.environ[ACCELERATE] = str(device)
    try:
        yield
    finally:
        os.environ.pop(ACCELERATE, None)
        os.environ.update(hidden)


@contextmanager
def fork_generators(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Restore the random generators of the CPU and of the accelerator at the end.

    Args:
        seed: to begin with inside the ``with``; None goes on from where the generators are.
        device: an accelerator that is used inside; None for the current one.
    """
    used = available_accelerator()
    devices: list[int] = []
    if used is not None:
        own = device.index if device is not None and device.type == used.type else None
        devices = [torch.accelerator.current_device_index() if own is None else own]
    with torch.random.fork_rng(devices, device_type="cuda" if used is None else used.type):
        if seed is not None:
            torch.manual_seed(seed)
        yield
