"""Compile a training step: one graph serves all equal blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from offsite.model.layers import QuantisedLinear

WORTH = 200  # batches; below, compiling takes longer than it saves
GRAPHS = 64  # kinds of block, shapes and modes that may each have a graph
BACKEND: ContextVar[Any] = ContextVar("BACKEND", default=None)  # inside :func:`compiled`

P = ParamSpec("P")
R = TypeVar("R")


def should_compile(asked: bool | None, batches: int, device: torch.device) -> bool:
    """Whether to compile: as asked, or else where so many batches save more time than it takes."""
    return (device.type == "cuda" and batches >= WORTH) if asked is None else asked


def fusible(function: Callable[P, R]) -> Callable[P, R]:
    """A function that is compiled inside :func:`compiled`, and runs as it is elsewhere."""

    @cache
    def fused(backend: Any) -> Callable[P, R]:
        compiled: Callable[P, R] = torch.compile(function, backend=backend)
        return compiled

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        backend = BACKEND.get()
        return (fused(backend) if backend else function)(*args, **kwargs)

    return run


@contextmanager
def compiled(model: nn.Module, on: bool = True, backend: Any = "inductor") -> Iterator[None]:
    """Run the blocks of a model and what is fusible through ``torch.compile`` inside the ``with``.

    Blocks of one kind share a graph, which torch also keeps on disk for later runs. Hooks on a
    block run outside its graph. A block that cannot be compiled runs as it is. On a GPU products of
    a width that is not aligned, such as LoRA's rank, are padded, since they then run faster. What
    follows from saved tensors without products, reductions or random numbers is computed again in
    the backward pass. (``aggressive_recomputation`` also draws dropout anew there, and then the
    gradients are wrong.)

    Each block stays one graph under torchrun too, where torch would cut it into parts of 25 MB of
    gradients to send: blocks are small, and what a backward pass has made of one is sent while it
    computes the next. Where weights are packed integers, equal parts of a graph are not merged:
    torch would then keep a weight that the forward pass unpacked until the backward pass.
    """
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if on else []
    if not blocks:
        yield
        return
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config

    packed = any(isinstance(module, QuantisedLinear) for module in model.modules())
    with (
        torch._dynamo.config.patch(
            recompile_limit=GRAPHS, suppress_errors=True, optimize_ddp=False
        ),
        torch._functorch.config.patch(
            cse=not packed,
            ban_recompute_used_far_apart=False,
            ban_recompute_long_fusible_chains=False,
            ban_recompute_materialized_backward=False,
        ),
        torch._inductor.config.patch(force_shape_pad=True),
    ):
        for block in blocks:
            block.forward = torch.compile(block.forward, backend=backend)
        before = BACKEND.set(backend)
        try:
            yield
        finally:
            BACKEND.reset(before)
            for block in blocks:
                del block.forward
