"""What a process does in a group of processes that compute together; here it is alone in one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from offsite.cli import main
from offsite.deltas import Full
from offsite.errors import OffsiteError
from offsite.tasks.text.causal import CausalText
from offsite.training import processes
from offsite.training.compiling import compiled
from offsite.training.options import TrainOptions
from offsite.training.processes import meet
from offsite.training.train import _arguments
from offsite.training.tunable import Tunable
from tests.support.models import language_model

CPU = torch.device("cpu")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    meeting = (tmp_path / "group").as_uri()
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_a_command_that_ends_leaves_the_group(
    group: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["offsite", "deltas"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and "lora" in capsys.readouterr().out
    assert not distributed.is_initialized()


def test_a_process_that_leaves_the_writing_to_another_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a command that a program under torchrun starts; the first never hears of it."""
    variables = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["offsite", "deltas"])
    for alone in (False, True):
        if alone:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        with pytest.raises(SystemExit) as end:
            main()
        found = capsys.readouterr()
        assert not end.value.code
        assert ("unset TORCHELASTIC_RUN_ID" in found.err) != alone
        assert bool(found.out) == alone


def test_a_command_that_one_process_alone_started_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script under torchrun starts it in its first process only."""
    library: Any = distributed
    agent = library.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0",
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "SOON", 0.2)
    with pytest.raises(OffsiteError, match="this command is process 0 of 2, and 1 of them did not"):
        meet(0.5)
    assert "Waiting for 1 more of the 2 processes" in capsys.readouterr().err
    with ThreadPoolExecutor() as pool:  # both came
        list(pool.map(meet, (20.0, 20.0)))
    monkeypatch.setenv("WORLD_SIZE", "1")
    meet(0.0)


def test_a_block_stays_one_graph_where_gradients_are_shared(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 64)
    model: Any = language_model("llama")
    runner = Full().attach(model, [0, 5]).model
    tunable = Tunable(runner, CausalText(max_length=16).loss)
    shared = DistributedDataParallel(tunable, bucket_cap_mb=0.001)  # less than one block has
    ids = torch.arange(5, 37).view(2, 16)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    backends: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        backends.append(graph)
        return graph.forward

    with compiled(runner, backend=backend):
        shared(input_ids=ids, labels=ids)["loss"].backward()
    assert len(backends) == counters["stats"]["unique_graphs"] - before


def test_buffers_are_not_sent_before_every_step() -> None:
    """Packed integer weights of frozen blocks are buffers."""
    made = _arguments(TrainOptions(precision="float32"), None, "unused", 1, CPU, None)
    assert made.ddp_broadcast_buffers is False
