"""Record the inputs of the blocks of a model, and run other blocks in their place.

A block needs more than hidden states: masks, rotary embeddings, ALiBi. What a family passes is
recorded once from the model's own forward and replayed, so no family is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import masking_utils

from offsite.model.blocks import get_blocks

IGNORE = -100  # the label of tokens that are not targets
CACHES = ("past_key_values", "layer_past", "past_key_value")
PLAIN_ROWS: ContextVar[bool] = ContextVar("PLAIN_ROWS", default=False)  # of this thread's forward
search = masking_utils.find_packed_sequence_indices


@dataclass
class Call:
    """One call of one block: its input, the other arguments, its output.

    ``inputs`` and ``output`` are hidden states (batch, length, hidden); ``real`` (batch, length) is
    false at padding, None if there is none.
    """

    inputs: torch.Tensor
    rest: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    real: torch.Tensor | None = None

    def tokens(self, state: torch.Tensor) -> torch.Tensor:
        """The states (..., hidden) of a batch like this one without those at padding."""
        return state if self.real is None else state[self.real]


def hidden(output: Any) -> torch.Tensor:
    """The hidden states in a block's output (BLOOM returns a tuple)."""
    state = output[0] if isinstance(output, tuple) else output
    assert isinstance(state, torch.Tensor)
    return state


@contextmanager
def record_calls(
    model: nn.Module, positions: Iterable[int] | None = None
) -> Iterator[dict[int, Call]]:
    """Record the calls of blocks during the forwards inside the ``with``; the last one stays."""
    calls: dict[int, Call] = {}
    blocks = get_blocks(model)
    with ExitStack() as stack:
        for position in range(len(blocks)) if positions is None else positions:

            def hook(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any,
                position: int = position,
            ) -> None:  # fmt: skip
                kwargs = {k: None if k in CACHES else v for k, v in kwargs.items()}
                state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
                calls[position] = Call(state, tuple(rest), kwargs, hidden(output))

            handle = blocks[position].register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


class _Reached(Exception):
    """A forward came as far as it was wanted."""


def observe(
    model: nn.Module,
    batch: Mapping[str, Any],
    positions: Iterable[int] | None = None,
    *,
    until: int | None = None,
) -> dict[int, Call]:
    """Run one batch (without labels) through a model and return the calls of its blocks.

    Args:
        until: the last block to run; None runs all, and the head.
    """

    def stop(*_: Any) -> None:
        raise _Reached

    with ExitStack() as stack:
        calls = stack.enter_context(record_calls(model, positions))
        if until is not None:  # after the hook that records its call
            stack.callback(get_blocks(model)[until].register_forward_hook(stop).remove)
            stack.enter_context(suppress(_Reached))
        forward(model, batch)
    real = real_tokens(batch)
    for call in calls.values():
        call.real = real
    return calls


def real_tokens(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """(batch, length), true up to each row's last target, since rows are padded on the right.

    None for pictures, and where no row is padded.
    """
    if "input_ids" not in batch or "labels" not in batch:
        return None
    target = batch["labels"] != IGNORE
    real = target.flip(1).cumsum(1).flip(1) > 0
    return None if real.all() else real


def forward(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """The model's output for a batch, without its own loss and without a cache."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    if "input_ids" in inputs:
        inputs["use_cache"] = False
    else:  # pictures come in float32, whatever the model computes in
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        inputs = {key: value.to(dtype) for key, value in inputs.items()}
    with nullcontext() if "position_ids" in inputs else one_example_a_row():
        return model(**inputs)


@contextmanager
def one_example_a_row() -> Iterator[None]:
    """Spare transformers the look for packed examples, where a batch has no positions of its own.

    Many models count the positions themselves and then search them for restarts. On a GPU that
    waits, in every step, until all that was asked of it before is done. Forward passes of other
    threads search as before.
    """
    token = PLAIN_ROWS.set(True)
    try:
        yield
    finally:
        PLAIN_ROWS.reset(token)


def search_if_packed(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Transformers' search for packed examples, but not in :func:`one_example_a_row`."""
    return None if PLAIN_ROWS.get() else search(position_ids)


masking_utils.find_packed_sequence_indices = search_if_packed


def replay(
    blocks: Sequence[nn.Module],
    positions: Sequence[int],
    calls: Mapping[int, Call],
    state: torch.Tensor,
) -> torch.Tensor:
    """Run blocks one after another on hidden states, with the arguments recorded at ``positions``.

    Args:
        blocks: modules to run.
        positions: for each, the position in the watched model whose arguments it gets.
        calls: what :func:`record_calls` recorded.
        state: (batch, length, hidden).

    Returns:
        Hidden states of the same shape.
    """
    for block, position in zip(blocks, positions, strict=True):
        call = calls[position]
        state = hidden(block(state, *call.rest, **call.kwargs))
    return state


def relative_error(state: torch.Tensor, call: Call) -> torch.Tensor:
    """``mean(((T - S) / rms(T))^2)`` of hidden states and a call's output T, in float32.

    ``rms`` is over the batch; padding does not count.
    """
    state, target = call.tokens(state).float(), call.tokens(call.output).float()
    return ((target - state) ** 2).mean() / (target**2).mean()
