"""Check whether blocks compute the same at another position of a shorter model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.files import reason
from offsite.model.quiet import quiet

UNREAD = ("training", "store_full_length_kv")  # a block may store keys that nothing reads
BY_INDEX = "scale_attn_by_inverse_layer_idx"  # GPT-2 and its kin divide by the index as they run


def outline(model: Any) -> Any:
    """The model that transformers builds from a model's configuration, on the meta device.

    Raises:
        OffsiteError: transformers cannot build it.
    """
    try:
        with torch.device("meta"), quiet():
            return type(model)(copy.deepcopy(model.config))
    except Exception as error:  # whatever a family raises when its blocks do not suit it
        raise OffsiteError(
            f"transformers cannot build a {type(model).__name__} without the blocks that are left "
            f"out ({reason(error)}); use a recipe that keeps every block, or --whole."
        ) from error


def check_movable(
    blocks: Sequence[nn.Module], built: Sequence[nn.Module], source: Sequence[int]
) -> None:
    """Refuse blocks that compute something else than what transformers builds at their new place.

    What a family derives from its configuration list by list has moved with the block. What it
    derives from the position has not: that is a number, a flag or a word that differs.

    Args:
        blocks: those of the whole model.
        built: those that transformers builds with the blocks ``source`` alone.

    Raises:
        OffsiteError: naming what differs.
    """
    if len(built) != len(source):
        raise OffsiteError(
            f"transformers builds {len(built)} blocks of this family where {len(source)} stay, so "
            "none can be left out; use a recipe that keeps every block, or --whole."
        )
    for index, (position, new) in enumerate(zip(source, built, strict=True)):
        own = dict(blocks[position].named_modules())
        for name, module in new.named_modules():
            if name not in own or type(own[name]) is not type(module):
                continue  # another kind of layer has other tensors, which are compared elsewhere
            old = settings(own[name], position)
            for key, value in settings(module, index).items():
                moved = (old.get(key), value) in ((position, index), (len(blocks), len(built)))
                if key == BY_INDEX and value:
                    raise differs(f"{name}.{key}")
                if key in old and not moved and not same(old[key], value):
                    raise differs(f"{name}.{key}".lstrip("."))


def settings(module: nn.Module, position: int) -> dict[str, Any]:
    """The numbers, flags and words that a module holds, but those for training alone.

    Of a table by position it is the entry of this one that counts.
    """
    held = {key: entry(value, position) for key, value in vars(module).items()}
    return {
        key: value
        for key, value in held.items()
        if isinstance(value, (int, float, str, type(None)))
        and not key.startswith("_")
        and key not in UNREAD
        and "drop" not in key
    }


def entry(value: Any, position: int) -> Any:
    """What a table says of a position, as that of Zamba 2's adapters; any other value itself."""
    table = isinstance(value, dict) and value and all(isinstance(key, int) for key in value)
    return value.get(position) if table else value


def same(old: Any, new: Any) -> bool:
    """Whether two settings are equal; floats up to rounding."""
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9)
    return bool(old == new)


def differs(key: str) -> OffsiteError:
    """The refusal of a family whose blocks compute with their position."""
    return OffsiteError(
        f"Blocks of this family differ by position (in '{key}'), so they cannot move; use a recipe "
        "that keeps every block, or --whole."
    )
