"""Find the layers and blocks of an emulator that are not its family's own, and rebuild them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.blocks import block_path, get_blocks
from offsite.model.layers import Described, build, linear_spec


def find_specs(model: nn.Module, family: nn.Module) -> dict[str, Any]:
    """Which modules of ``model`` differ from the untouched ``family`` model of its configuration.

    Args:
        model: an emulator with its adapter.
        family: the (meta) model that the same configuration gives.

    Returns:
        Module name to spec; empty when the emulator holds only the family's own blocks.
    """
    specs: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, Described):
            specs[name] = module.spec
        elif (spec := linear_spec(module)) and not name.startswith(tuple(f"{n}." for n in specs)):
            original = linear_spec(same_module(family, name))
            specs |= {name: spec} if spec != original else {}
    return specs


def same_module(family: nn.Module, name: str) -> nn.Module:
    """A module of a family by name.

    Raises:
        OffsiteError: the family builds another kind of block at that place.
    """
    try:
        return family.get_submodule(name)
    except AttributeError as error:
        raise OffsiteError(
            f"'{name}' is not part of the block that this family builds at that place: its blocks "
            "differ by position and cannot move, so keep the whole middle."
        ) from error


def find_shared(model: nn.Module) -> dict[int, int]:
    """Blocks that share all tensors of an earlier one: index to index of the first."""
    first: dict[tuple[int, ...], int] = {}
    shared = {}
    for index, block in enumerate(get_blocks(model)):
        key = tuple(id(tensor) for tensor in (*block.parameters(), *block.buffers()))
        if key in first:
            shared[index] = first[key]
        elif key:
            first[key] = index
    return shared


def rebuild(model: nn.Module, specs: Mapping[str, Any]) -> None:
    """Put empty layers of the allow-list where an offer's manifest says, in place.

    They are built on the meta device, so a size in a manifest costs no memory before the offer's
    tensors are there to fill it.

    Raises:
        OffsiteError: a name that is not in the model's block list.
    """
    path = block_path(model)
    for name, spec in specs.items():
        parent, _, leaf = name.rpartition(".")
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise OffsiteError(
                f"The offer replaces '{name}', which its model lacks; ask for a fresh copy."
            ) from error
        if not name.startswith(f"{path}."):
            raise OffsiteError(
                f"The offer replaces '{name}', which is not part of a block; ask for a fresh copy."
            )
        with torch.device("meta"):
            setattr(model.get_submodule(parent), leaf, build(spec))


def share(model: nn.Module, shared: Mapping[int, int]) -> None:
    """Let blocks use the tensors of earlier blocks by reference, in place (CRaSh's sharing).

    Raises:
        OffsiteError: indices out of range or not pointing back.
    """
    blocks = get_blocks(model)
    for index, first in shared.items():
        if not 0 <= first < index < len(blocks):
            raise OffsiteError(
                f"The offer shares block {index} with {first}, which is impossible; ask for a "
                "fresh copy."
            )
        for name, tensor in (*blocks[first].named_parameters(), *blocks[first].named_buffers()):
            owner, _, leaf = name.rpartition(".")
            setattr(blocks[index].get_submodule(owner), leaf, tensor)
