"""Two processes under torchrun give one result, that of one process with batches twice the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import Run


def torchrun(*words: object, module: str = "offsite") -> Any:
    """The one JSON value that two processes of a module print together."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
    torchrun(*make, "--distill-steps", 2, "--out", tmp_path / "two", "--json")
    tune = ("tune", tmp_path / "two", "--delta", "lora:rank=2", "--steps", 4, *data)
    two = ("--json", "--batch-size", 2, "--out")
    found = torchrun(*tune, *two, tmp_path / "delta2")
    assert found["steps"] == 4
    spread = torchrun(*tune, *two, tmp_path / "delta3", "--shard", "--eval-data", text_file)
    whole = ("--json", "--batch-size", 4, "--out", tmp_path / "delta1", "--eval-data", text_file)
    status, out, err = run(*tune, *whole)
    assert status == 0, err
    score = json.loads(out)["scores"]["emulator_tuned"]
    assert spread["scores"]["emulator_tuned"] == pytest.approx(score, rel=1e-5)
    file = "adapter_model.safetensors"
    for name in ("delta2", "delta3"):
        assert_alike(tmp_path / "delta1" / file, tmp_path / name / file)
    assert not list(tmp_path.glob("*.work"))


def test_each_of_two_processes_holds_half_of_what_is_frozen() -> None:
    for found in torchrun(module="tests.support.spread"):
        assert found["same"] and found["back"]
        assert found["held"] == found["all"] / 2


def test_one_process_alone_cannot_spread(
    run: Run, model_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    data = ("--data", text_file, "--max-length", 32, "--device", "cpu")
    status, _, err = run(
        "offer",
        model_folder("llama"),
        "--adapter",
        "ends:1,1",
        "--keep",
        2,
        "--out",
        tmp_path / "o",
    )
    assert status == 0, err
    status, _, err = run("tune", tmp_path / "o", "--shard", *data, "--out", tmp_path / "d")
    assert status == 2 and "leave out --shard" in err
    assert not (tmp_path / "d").exists()
