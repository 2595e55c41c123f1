"""The largest change of each tensor that a delta may make. The owner refuses more."""

from __future__ import annotations

import math

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.tensors import is_finite

MAX_CHANGE = 10.0  # how far a tensor may move, in multiples of its own norm


class OutOfBounds(OffsiteError):
    """The values of a delta are larger than its offer allows, as after a run that diverged."""


def check_change(before: nn.Module, after: nn.Module) -> None:
    """Refuse what a delta made of a model, tensor by tensor, after merging and in the final dtype.

    The norm of the delta's own tensors says little about that: a method may multiply them. A tensor
    W may change by at most ``MAX_CHANGE`` times its L2 norm plus the square root of its size, so by
    about 1 in each entry where W is zero.

    Args:
        before: the full model.
        after: the model with the delta in it; what it shares with ``before`` is not checked.

    Raises:
        OutOfBounds: a value that is not finite, or a tensor that changed by more than that.
    """
    old = dict(before.named_parameters())
    for name, value in after.named_parameters():
        known = old.get(name)
        if known is value:
            continue
        if known is not None and known.shape != value.shape:
            known = None
        change = math.nan if known is None else distance(value, known)
        if not math.isfinite(change) and not is_finite(value):
            raise OutOfBounds(
                f"With this delta '{name}' has values that are not finite in {value.dtype}; tune "
                "again with a lower learning rate."
            )
        if known is None:
            continue
        limit = MAX_CHANGE * norm(known) + value.numel() ** 0.5
        if change > limit:
            raise OutOfBounds(
                f"This delta changes '{name}' by {change:.3g} (L2 norm), but at most {limit:.3g}"
                " is plugged; tune again with a lower learning rate or a smaller alpha."
            )


def check_range(model: nn.Module) -> None:
    """Refuse a model with values that its dtype cannot hold.

    Raises:
        OffsiteError: naming the first tensor.
    """
    for name, value in model.named_parameters():
        if not is_finite(value):
            raise OffsiteError(
                f"'{name}' has values that {value.dtype} cannot hold; choose another --dtype."
            )


def norm(value: torch.Tensor) -> float:
    """The L2 norm, in float32."""
    return float(value.detach().float().norm())


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The L2 norm of a difference, in float32; not finite where a value of either is not."""
    return norm(one.detach().float() - other.detach().float())
