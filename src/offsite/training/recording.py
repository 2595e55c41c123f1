"""One CUDA graph for the forward and backward pass of a training step.

A step of tuning is thousands of small calls, which Python gives to a GPU more slowly than the GPU
computes them. Here the calls of one step are recorded, and later steps of the same shapes are
replayed by a single call (torch's CUDA graphs). The numbers are those of the step itself.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offsite.training.options import TrainOptions
from offsite.training.processes import process_count

WARM = 3  # steps in a row of the same shapes before one is recorded

Batch = dict[str, Any]
Step = Callable[[Batch, Any], torch.Tensor]


@dataclass
class Recorded:
    """A recorded step: what it reads, and what a replay writes."""

    graph: Any
    inputs: Batch
    items: Any
    loss: torch.Tensor
    gradients: Sequence[tuple[nn.Parameter, torch.Tensor]]


def record(step: Step, inputs: Batch, items: Any, parameters: Sequence[nn.Parameter]) -> Recorded:
    """Record a step, which adds gradients to parameters and returns the loss. Nothing is computed.

    Gradients that are there already stay.
    """
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # the recording has its own
    torch.cuda.empty_cache()
    begun = [(parameter, parameter.grad) for parameter in parameters]
    own = {key: copied(value) for key, value in inputs.items()}
    count, graph, stream = copied(items), torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    for parameter in parameters:
        parameter.grad = None
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = step(own, count)
        found = [(p, p.grad) for p in parameters if p.grad is not None]
    except RuntimeError:  # torch 2.11 leaves its stream and its generator recording
        torch.cuda.set_stream(stream)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        for parameter, gradient in begun:
            parameter.grad = gradient
    return Recorded(graph, own, count, loss, found)


def replay(recorded: Recorded, inputs: Batch, items: Any) -> torch.Tensor:
    """Run a recorded step on a batch of the same shapes: adds gradients, returns the loss."""
    for key, value in (*inputs.items(), ("", items)):
        own = recorded.inputs[key] if key else recorded.items
        if isinstance(value, torch.Tensor):
            own.copy_(value, non_blocking=True)
    recorded.graph.replay()
    for parameter, gradient in recorded.gradients:
        if parameter.grad is None:
            parameter.grad = gradient.clone()
        else:
            parameter.grad.add_(gradient)
    return recorded.loss.clone()


def copied(value: Any) -> Any:
    """A tensor of its own with the same values; anything else as it is."""
    return value.clone() if isinstance(value, torch.Tensor) else value


def shape_of(inputs: Mapping[str, Any], items: Any) -> tuple[Any, ...]:
    """What two batches must have in common to share a recording."""
    return tuple(
        (key, value.shape, value.dtype, value.device)
        if isinstance(value, torch.Tensor)
        else (key, repr(value))
        for key, value in (*sorted(inputs.items()), ("", items))
    )


def can_record(options: TrainOptions, device: torch.device) -> bool:
    """Whether steps of a run can be recorded: one process on a GPU, and nothing computed twice."""
    simple = not options.gradient_checkpointing and options.precision != "float16"
    return device.type == "cuda" and process_count() == 1 and simple


class Recorder:
    """Runs training steps, and from the :data:`WARM`-th of one shape on replays them.

    Steps of other shapes run as they are. The last step before the recording is watched. One that
    waits for the GPU anywhere cannot be recorded, and one that draws random numbers on the CPU, as
    models do that leave out layers by chance, is another step each time; then none is recorded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.shape: tuple[Any, ...] = ()
        self.seen = 0
        self.recorded: Recorded | None = None
        self.given_up = False

    def __call__(self, step: Step, inputs: Batch, items: Any) -> torch.Tensor:
        """The loss of one step, which adds its gradients to those of the parameters."""
        shape = shape_of(inputs, items)
        if self.recorded is not None and shape == self.shape:
            return replay(self.recorded, inputs, items)
        if self.given_up or self.recorded is not None:
            return step(inputs, items)
        self.seen = self.seen + 1 if shape == self.shape else 1
        self.shape = shape
        if self.seen < WARM:
            return step(inputs, items)
        return self.watched(step, inputs, items)

    def watched(self, step: Step, inputs: Batch, items: Any) -> torch.Tensor:
        """Run one step, and record it unless it waited."""
        begun = [(parameter, copied(parameter.grad)) for parameter in self.parameters]
        drawn = generators()
        try:
            with refusing_to_wait():
                loss = step(inputs, items)
            self.given_up = generators() != drawn
            if not self.given_up:
                self.recorded = record(step, inputs, items, self.parameters)
            return loss
        except RuntimeError:
            self.given_up = True
        for parameter, gradient in begun:
            parameter.grad = gradient
        return step(inputs, items)


def generators() -> tuple[Any, bytes]:
    """The states of the CPU's generators of random numbers."""
    return random.getstate(), torch.get_rng_state().numpy().tobytes()


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Raise a RuntimeError where the host would wait for a GPU."""
    with warnings.catch_warnings(action="ignore"):  # torch calls it a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
