"""Making a drop-only offer holds the kept tensors and one shard, never the model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import offsite as ot
from offsite.model.checkpoint import load_model
from offsite.owner import cutting

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "offer_memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on data is a Linux feature")
def test_an_offer_is_made_with_less_memory_than_the_model_needs() -> None:
    command = [sys.executable, str(SCRIPT), "--hidden", "1024", "--blocks", "8", "--slack", "48"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert result["offer_made"], result
    assert not result["whole_model_loads"], result
    assert result["allowance"] < 0.6 * result["model"]
    assert result["offer_peak"] < result["kept"] + 2 * result["largest_shard"], result


def test_a_model_too_large_for_float32_is_compressed_as_it_is(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "half"
    load_model(model_folder("llama"), dtype=torch.bfloat16).save_pretrained(folder)
    seen: list[torch.dtype] = []

    class Look(ot.Rank):
        def __call__(self, middle: Any, context: Any) -> Any:
            seen.append(next(context.model.parameters()).dtype)
            return super().__call__(middle, context)

    def offer() -> dict[str, torch.Tensor]:
        made, _ = ot.make_offer(folder, adapter=ot.ends(1, 1), recipe=[Look(0.75)])
        return dict(made.model.named_parameters())

    whole = offer()
    monkeypatch.setattr(cutting, "available_memory", lambda: 1000.0)
    small = offer()
    assert seen == [torch.float32, torch.bfloat16]
    assert "too much" in capsys.readouterr().err
    for name, value in whole.items():  # a layer is computed in float32 either way
        assert torch.equal(value, small[name]), name


def test_memory_is_what_the_process_may_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = cutting.available_memory()
    container = tmp_path / "memory.max"
    monkeypatch.setattr(cutting, "CONTAINER", (container, tmp_path / "none"))
    container.write_text("max\n")
    assert cutting.available_memory() <= machine
    container.write_text("4096\n")
    assert cutting.available_memory() == 4096
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2048, resource.RLIM_INFINITY))
    assert cutting.available_memory() == 2048
