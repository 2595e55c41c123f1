"""Steps that are recorded once and replayed. What a CUDA graph does is played by Python here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from offsite.training import recording
from offsite.training.options import TrainOptions
from offsite.training.recording import Recorded, Recorder, can_record, replay

CPU = torch.device("cpu")


class Played:
    """A graph that computes the step again, from the recording's inputs into its tensors."""

    def __init__(self, step: Any) -> None:
        self.step, self.count = step, 0
        self.recorded: Any = None

    def replay(self) -> None:
        self.count += 1
        found = self.recorded
        begun = [parameter.grad for parameter, _ in found.gradients]
        for parameter, _ in found.gradients:
            parameter.grad = None
        found.loss.copy_(self.step(found.inputs, found.items))
        for (parameter, gradient), old in zip(found.gradients, begun, strict=True):
            gradient.copy_(parameter.grad)
            parameter.grad = old


@pytest.fixture
def parameter(monkeypatch: pytest.MonkeyPatch) -> nn.Parameter:
    """Where the recording of steps is played by Python."""

    def record(step: Any, inputs: Any, items: Any, parameters: Any) -> Recorded:
        own = {key: value.clone() for key, value in inputs.items()}
        graph = Played(step)
        gradients = [(p, torch.zeros_like(p)) for p in parameters]
        graph.recorded = Recorded(graph, own, items.clone(), torch.zeros(()), gradients)
        found: Recorded = graph.recorded
        return found

    @contextmanager
    def watching() -> Iterator[None]:
        yield

    monkeypatch.setattr(recording, "record", record)
    monkeypatch.setattr(recording, "refusing_to_wait", watching)
    return nn.Parameter(torch.ones(3))


def batch(seed: int, rows: int = 2) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))}


def test_replayed_steps_give_the_losses_and_gradients_of_steps(parameter: nn.Parameter) -> None:
    calls = []

    def step(inputs: Any, items: Any) -> Any:
        calls.append(len(inputs["x"]))
        loss = ((inputs["x"] * parameter) ** 2).sum() / items
        loss.backward()
        return loss.detach()

    recorder = Recorder([parameter])
    for seed in range(6):
        parameter.grad = None
        inputs, items = batch(seed), torch.tensor(seed + 1.0)
        losses = [recorder(step, inputs, items), recorder(step, inputs, items)]  # accumulated
        expected = ((inputs["x"] * parameter) ** 2).sum() / items
        (gradient,) = torch.autograd.grad(expected, parameter)
        assert all(torch.allclose(loss, expected) for loss in losses)
        assert torch.allclose(parameter.grad, 2 * gradient)  # type: ignore[arg-type]
    assert recorder.recorded is not None
    assert recorder.recorded.graph.count == 12 - recording.WARM
    recorder(step, batch(0, rows=1), torch.tensor(1.0))
    assert recorder.recorded.graph.count == 12 - recording.WARM  # another shape is not replayed
    assert calls[-1] == 1


def test_a_step_that_waits_is_never_recorded(parameter: nn.Parameter) -> None:
    watched = []

    @contextmanager
    def refusing() -> Iterator[None]:
        watched.append(True)
        yield
        raise RuntimeError("called a synchronizing CUDA operation")

    def step(inputs: Any, items: Any) -> Any:
        loss = (inputs["x"] * parameter).sum()
        loss.backward()
        return loss.detach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "refusing_to_wait", refusing)
        recorder = Recorder([parameter])
        for seed in range(6):
            parameter.grad = None
            recorder(step, inputs := batch(seed), torch.tensor(1.0))
            assert torch.allclose(parameter.grad, inputs["x"].sum(0))  # type: ignore[arg-type]
    assert recorder.recorded is None and watched == [True]


@pytest.mark.parametrize("draw", [torch.rand, lambda _: random.random()])
def test_a_step_of_chance_is_never_recorded(parameter: nn.Parameter, draw: Any) -> None:
    """On the CPU, where a recording would keep what was drawn once."""

    def step(inputs: Any, items: Any) -> Any:
        loss = (inputs["x"] * parameter).sum() * float(draw(()))
        loss.backward()
        return loss.detach()

    recorder = Recorder([parameter])
    losses = [float(recorder(step, batch(0), torch.tensor(1.0))) for _ in range(6)]
    assert recorder.recorded is None and len(set(losses)) == 6


def test_a_replay_leaves_gradients_that_are_its_own(parameter: nn.Parameter) -> None:
    class Graph:
        def replay(self) -> None:
            found.gradients[0][1].fill_(2.0)

    found = Recorded(Graph(), batch(0), torch.tensor(1.0), torch.zeros(()), [])
    found.gradients = [(parameter, torch.zeros(3))]
    replay(found, batch(1), torch.tensor(1.0))
    first = parameter.grad
    replay(found, batch(2), torch.tensor(1.0))
    assert parameter.grad is first and first is not None and first.tolist() == [4.0] * 3


def test_only_one_process_on_a_gpu_records() -> None:
    cuda = torch.device("cuda")
    assert can_record(TrainOptions(), cuda) and not can_record(TrainOptions(), CPU)
    assert not can_record(TrainOptions(gradient_checkpointing=True), cuda)
    assert not can_record(TrainOptions(precision="float16"), cuda)
