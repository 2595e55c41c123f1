"""Memory that training freed goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from offsite.training.memory import trim_memory


def resident() -> int:
    """Bytes of memory that this process holds."""
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_gaps_between_tensors_in_use_go_back() -> None:
    """Tensors of a block are below the size at which glibc maps each by itself."""
    first = torch.ones(2**23)
    del first  # from here on glibc takes tensors of up to 32 MiB from its heap
    tensors = [torch.ones(2**18) for _ in range(200)]
    kept = tensors[1::20]
    before = resident()
    del tensors
    trim_memory()
    assert before - resident() > 100 * 2**20
    assert all(bool((tensor == 1).all()) for tensor in kept)
