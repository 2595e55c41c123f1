"""Cross entropy over a vocabulary, computed without holding all logits.

The logits of a batch are the largest tensor of a language model: 8 rows of 512 tokens over a
vocabulary of 262,144 take 4 GiB in float32, three times over with their copy and gradient. Here a
few hundred rows of logits exist at a time, and their gradient is taken while they exist (Hsu et
al., Liger Kernel, arXiv 2410.10989, section 3.2; plain PyTorch here, so it runs on any device).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from offsite.model.replay import IGNORE, forward
from offsite.training.compiling import fusible

Compare = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]
CHUNK = 2**24  # logits held at a time
ALIGNED = 32  # a GPU multiplies matrices of other widths up to five times slower
CHANGED: WeakSet[nn.Module] = WeakSet()  # heads whose logits the model changes (caps, scales)


def token_losses(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Cross entropy of every target token of a batch, flat, in float32, in nats."""
    labels = batch["labels"][:, 1:].flatten()
    return losses_at(model, batch, (labels != IGNORE).nonzero().squeeze(1))


def summed_loss(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Sum of :func:`token_losses`. On a GPU it does not wait until it knows which are targets.

    Rows with position ids hold prompts and answers, of which few tokens are targets: there waiting
    costs less than the logits of all tokens.
    """
    labels = batch["labels"][:, 1:].flatten()
    if labels.device.type == "cpu" or "position_ids" in batch:
        return token_losses(model, batch).sum()
    everything = torch.arange(len(labels), device=labels.device)
    return losses_at(model, batch, everything).where(labels != IGNORE, 0).sum()


def losses_at(model: nn.Module, batch: Mapping[str, Any], chosen: torch.Tensor) -> torch.Tensor:
    """Cross entropy at some places of the flattened labels (without the first of each row)."""
    targets = batch["labels"][:, 1:].flatten()[chosen].clamp(min=0)
    output, head = forward_to_head(model, batch)
    states = output.logits
    del output  # a step needs most memory from here on, so each copy frees the one before it
    if head is not None:
        states = states.to(computing_dtype(head, states.device.type))
    states = states[:, :-1].flatten(0, 1)
    states = states.index_select(0, chosen)
    if head is not None:
        return head_losses(states, head, targets)
    return nn.functional.cross_entropy(states.float(), targets, reduction="none")


def forward_to_head(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Any, nn.Linear | None]:
    """A model's output with the states that its head reads in place of the logits, and the head.

    The head is None, and the output is as always, where the head is not a plain linear layer or
    the model changes what it gives.
    """
    head = linear_head(model)
    if head is not None and head not in CHANGED:
        with passing(head) as passed:
            output = forward(model, batch)
        if untouched(output.logits, passed):
            return output, head
        CHANGED.add(head)
    return forward(model, batch), None


def linear_head(model: nn.Module) -> nn.Linear | None:
    """The linear layer that turns states into logits, where the model has a plain one."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if type(head) is nn.Linear else None


@contextmanager
def passing(head: nn.Linear) -> Iterator[list[tuple[torch.Tensor, int]]]:
    """Let the head return the states it is given; yields them, each with its version."""
    passed: list[tuple[torch.Tensor, int]] = []

    def forward(states: torch.Tensor) -> torch.Tensor:
        passed.append((states, states._version))
        return states

    before = vars(head).get("forward")
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield passed
    finally:
        del head.forward
        if before is not None:
            head.forward = before  # type: ignore[method-assign]


def untouched(states: torch.Tensor, passed: list[tuple[torch.Tensor, int]]) -> bool:
    """Whether what a model returned as logits is what its head was given, or a part of it."""
    if len(passed) != 1:
        return False
    given, version = passed[0]
    same = states.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return same and states.dtype == given.dtype and states._version == version


def head_losses(
    states: torch.Tensor, head: nn.Linear, targets: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Cross entropy of targets under ``head(states)``, a few logits at a time.

    Args:
        states: (tokens, hidden).
        head: (hidden -> vocabulary); frozen or trained.
        targets: (tokens,) token ids.
        chunk: how many logits; None for ``CHUNK``.

    Returns:
        (tokens,) float32, in nats. Under autocast the logits are computed in its dtype.
    """
    rows, kind = rows_at_a_time(head, chunk), states.device.type
    weight, bias = computed_in(head, kind)
    states = states.to(weight.dtype)
    with torch.autocast(kind, enabled=False):
        if any(parameter.requires_grad for parameter in head.parameters()):
            pairs = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
            losses = [
                checkpoint(_losses, s, weight, bias, t, use_reentrant=False) for s, t in pairs
            ]
            return torch.cat(losses)
        size = head.out_features
        if kind != "cpu":
            weight, bias = widened(weight, bias)
        compare = with_targets(targets, size)
        found: torch.Tensor = FrozenHead.apply(states, weight, bias, rows, compare)  # type: ignore
        return found


def rows_at_a_time(head: nn.Linear, chunk: int | None = None) -> int:
    """How many rows of a head's logits are held at a time, of ``chunk`` or ``CHUNK`` in all."""
    rows = max(1, (chunk or CHUNK) // head.out_features)
    return rows // 128 * 128 or rows  # whole tiles of a GPU's matrix product


def computed_in(head: nn.Linear, kind: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a head in the dtype that a device of this kind computes in now."""
    dtype = computing_dtype(head, kind)
    return head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)


def computing_dtype(head: nn.Linear, kind: str) -> torch.dtype:
    """The dtype in which a device of this kind computes a head's logits now."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype


def widened(
    weight: torch.Tensor, bias: torch.Tensor | None, multiple: int = ALIGNED
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A head with rows of zeros after its last, up to a multiple; their logits are zeros too."""
    spare = -len(weight) % multiple
    if not spare:
        return weight, bias
    pad = nn.functional.pad
    return pad(weight, (0, 0, 0, spare)), None if bias is None else pad(bias, (0, spare))


def _losses(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    logits = nn.functional.linear(states, weight, bias)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def with_targets(targets: torch.Tensor, size: int) -> Compare:
    """Cross entropy with (tokens,) targets, over the first ``size`` logits of each row."""

    def compare(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return into_slopes(logits[:, :size], targets[part]), logits

    return compare


@fusible
def into_slopes(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each row of logits, in float32; the logits become their own gradient.

    Args:
        logits: (rows, vocabulary), overwritten with softmax less one-hot of the target.
        targets: (rows,) token ids.

    Returns:
        (rows,) losses in nats.
    """
    chosen = targets[:, None]
    scores = nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32)
    losses = -scores.gather(1, chosen).squeeze(1)
    hits = chosen == torch.arange(logits.shape[1], device=logits.device)
    logits.copy_(scores.exp_().sub_(hits.to(scores.dtype)))
    return losses


class FrozenHead(torch.autograd.Function):
    """A loss of each row under a head that does not train, a few logits at a time.

    ``apply(states, weight, bias, rows, compare)`` gives (tokens,) losses in float32.
    ``compare(logits, part)`` gives those of some rows, and their gradient by the logits; from it
    the states' gradient is made while the logits exist.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: int,
        compare: Compare,
    ) -> torch.Tensor:
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            logits = nn.functional.linear(states[part], weight, bias)
            losses[part], slope = compare(logits, part)
            if slopes is not None:
                torch.mm(slope.to(weight.dtype), weight, out=slopes[part])
            del logits, slope
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *slope: torch.Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return slope[0].to(slopes.dtype)[:, None] * slopes, None, None, None, None
