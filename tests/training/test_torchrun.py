"""Two processes under torchrun give one result, that of one process with batches twice the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support import Run


def torchrun(*words: object) -> dict[str, object]:
    """The one JSON object that two processes of a command print together."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "offsite", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def assert_alike(one: Path, two: Path) -> None:
    left, right = load_file(one), load_file(two)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=1e-6, rtol=1e-5)


def test_both_sides(
    run: Run, model_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    data = ("--data", text_file, "--max-length", 32, "--device", "cpu")
    make = ("offer", model_folder("llama"), "--adapter", "ends:1,1", "--keep", 2, *data)
    torchrun(*make, "--distill-steps", 2, "--out", tmp_path / "two")
    tune = ("tune", tmp_path / "two", "--delta", "lora:rank=2", "--steps", 4, *data)
    found = torchrun(*tune, "--batch-size", 2, "--out", tmp_path / "delta2")
    assert found["steps"] == 4
    status, _, err = run(*tune, "--batch-size", 4, "--out", tmp_path / "delta1")
    assert status == 0, err
    file = "adapter_model.safetensors"
    assert_alike(tmp_path / "delta1" / file, tmp_path / "delta2" / file)
    assert not list(tmp_path.glob("*.work"))
