"""Making a drop-only offer holds the kept tensors and one shard, never the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "offer_memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on data is a Linux feature")
def test_an_offer_is_made_with_less_memory_than_the_model_needs() -> None:
    command = [sys.executable, str(SCRIPT), "--hidden", "1024", "--blocks", "8", "--slack", "48"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert result["offer_made"], result
    assert not result["whole_model_loads"], result
    assert result["allowance"] < 0.6 * result["model"]
    assert result["offer_peak"] < result["kept"] + 2 * result["largest_shard"], result
