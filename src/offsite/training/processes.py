"""Several processes that train together; the first one writes and prints."""

from __future__ import annotations

import math
import os
import sys
import time
from datetime import timedelta
from typing import Any

from offsite.errors import OffsiteError
from offsite.training.progress import say

PATIENCE = 300.0  # seconds to wait for the other processes
SOON = 15.0  # seconds after which a word is said of it
TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for the processes that it starts


def process_count() -> int:
    """How many processes torchrun started to compute one result together; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if TORCHRUN in os.environ and size.isdecimal() else 1


def local_rank() -> int | None:
    """Which of torchrun's processes on this host this one is, from 0; None without torchrun."""
    rank = os.environ.get("LOCAL_RANK", "")
    return int(rank) if TORCHRUN in os.environ and rank.isdecimal() else None


def main_process() -> bool:
    """Whether this process writes and speaks: of several that compute together, the first.

    Processes compute together once they have formed a group, or when torchrun started them to form
    one. ``RANK`` alone says nothing: schedulers set it for processes that never meet.
    """
    size, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    if not size.isdecimal() or int(size) < 2:
        return True
    import torch.distributed as group

    if group.is_available() and group.is_initialized():
        return group.get_rank() == 0
    return TORCHRUN not in os.environ or rank == "0"


def silent() -> str | None:
    """Why this process says and writes nothing, where it never met the first; None if it does.

    A program that runs under torchrun passes torchrun's variables on to the commands it starts.
    """
    if main_process() or ((group := loaded_group()) is not None and group.is_initialized()):
        return None
    return (
        f"This command wrote nothing: by torchrun's variables it is process "
        f"{os.environ.get('RANK', '')} of {process_count()}, and process 0 writes. To run it by "
        f"itself, unset {TORCHRUN} first."
    )


def meet(patience: float = PATIENCE) -> None:
    """Wait until all processes that torchrun started have come this far.

    A program that runs under torchrun passes torchrun's variables on to the commands it starts. If
    only one of its processes starts this command, the others never come.

    Args:
        patience: for how many seconds to wait.

    Raises:
        OffsiteError: some of them have not come.
    """
    size, rank = process_count(), os.environ.get("RANK", "")
    if size < 2 or not rank.isdecimal() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch

    group: Any = torch.distributed
    if group.is_initialized():
        return
    first = next(group.rendezvous("env://", int(rank), size, timeout=timedelta(seconds=patience)))
    store = group.PrefixStore("offsite", first[0])
    came = store.add("here", 1)
    everyone, began, told = math.ceil(came / size) * size, time.monotonic(), False
    while (here := store.add("here", 0)) < everyone:
        waited, missing = time.monotonic() - began, everyone - here
        if waited > patience:
            store.add("here", -1)
            raise OffsiteError(
                f"By torchrun's variables this command is process {rank} of {size}, and {missing} "
                f"of them did not come within {patience:.0f} s. To run it by itself, unset "
                f"{TORCHRUN} first."
            )
        if waited > SOON and not told:
            say(f"Waiting for {missing} more of the {size} processes that torchrun started.")
            told = True
        time.sleep(0.1)


def leave_group() -> None:
    """Leave the group of processes that compute together, where this process is in one.

    The library of GPUs (NCCL) may otherwise wait for the others when the process ends.
    """
    if (group := loaded_group()) is not None and group.is_initialized():
        group.destroy_process_group()


def loaded_group() -> Any:
    """The module of process groups; None where nothing has loaded torch, which takes a second."""
    if "torch" not in sys.modules:
        return None
    import torch.distributed as group

    return group if group.is_available() else None
