"""Find, take and put back the list of transformer blocks of a model.

Every model is *ends + one list of blocks*. In transformers 5 that list is the ``nn.ModuleList``
whose items are ``GradientCheckpointingLayer``; this is true of language and vision families alike.
This file is the only one that knows where blocks live and what must be renumbered when they move.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from offsite.errors import OffsiteError
from offsite.model.movable import check_movable, outline
from offsite.model.per_block import cut_ends

NOT_PER_BLOCK = ("out_features", "out_indices", "pool_scales", "architectures")
Value = TypeVar("Value")
Module = TypeVar("Module", bound=nn.Module)


def block_path(model: nn.Module) -> str:
    """The dotted path of the model's one list of blocks, such as ``"model.layers"``.

    Raises:
        OffsiteError: there is no such list, or more than one (an encoder-decoder, two towers).
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(isinstance(item, GradientCheckpointingLayer) for item in module)
    ]
    if len(found) != 1:
        what = "no list of transformer blocks" if not found else f"several: {', '.join(found)}"
        raise OffsiteError(
            f"{type(model).__name__} has {what}; offsite needs a model with exactly one list of "
            "transformers blocks, such as a decoder-only language model or a vision transformer."
        )
    name: str = found[0]
    return name


def get_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks itself (not a copy)."""
    blocks = model.get_submodule(block_path(model))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def block_config(model: nn.Module) -> Any:
    """The configuration that governs the block list (in a CLIP classifier its vision part)."""
    names = block_path(model).split(".")[:-1]
    for length in range(len(names), -1, -1):
        owner = model.get_submodule(".".join(names[:length]))
        if getattr(owner, "config", None) is not None:
            return owner.config
    raise OffsiteError(
        f"{type(model).__name__} has no transformers configuration; use a model of transformers."
    )


def set_blocks(model: nn.Module, blocks: Sequence[nn.Module], source: Sequence[int]) -> None:
    """Replace the block list in place, renumber it and make the configuration agree.

    Args:
        model: a transformers model.
        blocks: the new blocks, in order; no module may appear twice (use :func:`alias`), because
            each needs a cache slot of its own.
        source: for each new block, the index in the *present* list whose per-block settings
            (``config.layer_types``, window sizes) it takes over.

    Raises:
        OffsiteError: empty list, a repeated module, or a family whose arithmetic depends on the
            position of a block, so that moving one would change it silently.
    """
    if not blocks or len(blocks) != len(source):
        raise OffsiteError("A model needs at least one block, and one source position per block.")
    if len({id(block) for block in blocks}) < len(blocks):
        raise OffsiteError("A block was given twice; give each position an alias of its own.")
    total = len(get_blocks(model))
    config = renumber(model, source)
    path = block_path(model)
    parent, _, name = path.rpartition(".")
    if list(source) != list(range(total)):
        built = outline(model)
        check_movable(list(get_blocks(model)), list(get_blocks(built)), source)
        setattr(model.get_submodule(parent), name, nn.ModuleList())
        cut_ends(model, built, total, source)
    setattr(model.get_submodule(parent), name, nn.ModuleList(blocks))
    for index, block in enumerate(blocks):
        for module in block.modules():
            for attribute in {"layer_idx", "layer_id"} & vars(module).keys():
                setattr(module, attribute, index)
            if type(getattr(module, "config", None)) is type(config):
                setattr(module, "config", own_config(config, index))  # noqa: B010


def renumber(model: nn.Module, source: Sequence[int]) -> Any:
    """Make a model's configuration describe only its blocks ``source``, in place, and return it.

    Every list with one entry per block is re-sliced (``layer_types``, ``no_rope_layers`` ...), and
    the derived ``stage_names`` of vision backbones are rebuilt.

    Raises:
        OffsiteError: a block whose keys and values later blocks read is left out.
    """
    config, total = block_config(model), len(get_blocks(model))
    layer_types = getattr(config, "layer_types", None)
    for key, value in list(vars(config).items()):
        if key.startswith("_") or key in NOT_PER_BLOCK or not isinstance(value, (list, tuple)):
            continue
        if len(value) == total:
            setattr(config, key, type(value)(value[index] for index in source))
    if getattr(config, "num_kv_shared_layers", 0):
        config.num_kv_shared_layers = readers_left(config, layer_types, source, total)
    own = config.to_dict().get("per_layer_config")
    if getattr(config, "scale_depth", None):  # MiniCPM3 divides it by the root of the depth
        config.scale_depth *= math.sqrt(len(source) / total)
    set_depth(config, total, len(source))
    if own:  # settings of single blocks, by position
        by_position = {int(index): settings for index, settings in own.items()}
        config.per_layer_config = {
            index: by_position[position]
            for index, position in enumerate(source)
            if position in by_position
        }
    if getattr(config, "stage_names", None):
        config.stage_names = ["stem"] + [f"stage{i + 1}" for i in range(len(source))]
        config.out_features, config.out_indices = [config.stage_names[-1]], [len(source)]
    return config


def set_depth(config: Any, total: int, count: int) -> None:
    """Say that ``count`` of ``total`` blocks are left; BART counts those of its decoder apart."""
    with suppress(NotImplementedError):  # ProphetNet counts decoder blocks alone
        config.num_hidden_layers = count
    for key in ("decoder_layers", "num_decoder_layers"):
        if getattr(config, key, None) == total:
            setattr(config, key, count)


def own_config(config: Any, index: int) -> Any:
    """The configuration of one block: the model's, unless that has settings of single blocks."""
    return config.per_layer_config[index] if getattr(config, "is_heterogeneous", False) else config


def readers_left(
    config: Any, layer_types: Sequence[str] | None, source: Sequence[int], total: int
) -> int:
    """How many of the blocks ``source`` read keys and values of an earlier block (Gemma 3n and 4).

    The last blocks of such a model do: each reads those of the last block of its type that makes
    its own.

    Args:
        layer_types: the type of each of the ``total`` blocks; None where all are alike.

    Raises:
        OffsiteError: a block whose keys and values are read is not among ``source``.
    """
    first, types = total - config.num_kv_shared_layers, layer_types or [""] * total
    readers = [index for index in source if index >= first]
    makers = {types[index]: index for index in range(first)}
    needed = {makers[types[index]] for index in readers}
    if missing := needed - set(source):
        raise OffsiteError(
            f"Block {min(missing)} cannot be left out, because later blocks of this model read "
            "its keys and values; make it an adapter block (--adapter takes positions, such as "
            f"{','.join(map(str, sorted({0, *makers.values(), total - 1})))}), or use a recipe "
            "that keeps every block."
        )
    return len(readers)


def alias(module: Module) -> Module:
    """A second module tree over the *same* parameters and buffers.

    Sub-modules are new (so ``layer_idx``, hooks and surgery on one do not reach the other); tensors
    are shared by reference, so no memory is spent.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        memo[id(tensor)] = tensor
    return copy.deepcopy(module, memo)


def assemble(model: Module, blocks: Sequence[nn.Module], source: Sequence[int]) -> Module:
    """A new model of the same ends around other blocks; no tensor is copied.

    ``model`` is untouched. See :func:`set_blocks` for ``source``.
    """
    path = block_path(model)
    parent, _, name = path.rpartition(".")
    owner, original = model.get_submodule(parent), get_blocks(model)
    try:
        # alias only the ends: a placeholder list keeps the original blocks out of the copy
        setattr(owner, name, nn.ModuleList([original[0]]))
        shell = alias(model)
    finally:
        setattr(owner, name, original)
    setattr(shell.get_submodule(parent), name, nn.ModuleList(original))
    set_blocks(shell, [alias(block) for block in blocks], source)
    return shell


def with_own_blocks(model: Module, own: Sequence[int]) -> Module:
    """A model over the same tensors but for the blocks ``own``, which are copies in float32."""
    blocks = [
        copy.deepcopy(block).float() if index in own else block
        for index, block in enumerate(get_blocks(model))
    ]
    return assemble(model, blocks, range(len(blocks)))


def block_parameters(model: nn.Module, positions: Iterable[int]) -> dict[str, nn.Parameter]:
    """The parameters of some blocks, by their names in the model."""
    path, blocks = block_path(model), get_blocks(model)
    return {
        f"{path}.{index}.{name}": parameter
        for index in positions
        for name, parameter in blocks[index].named_parameters()
    }


def rename_blocks(
    tensors: Mapping[str, Value], path: str, mapping: Mapping[int, int]
) -> dict[str, Value]:
    """Rename ``...{path}.{i}.rest`` to ``...{path}.{mapping[i]}.rest``; other names stay.

    Works on any name that contains the path, so on peft's ``base_model.model.`` names too.

    Raises:
        OffsiteError: a name refers to a block that ``mapping`` does not have.
    """
    pattern = re.compile(rf"((?:^|\.){re.escape(path)}\.)(\d+)(?=\.|$)")

    def move(match: re.Match[str]) -> str:
        index = int(match[2])
        if index not in mapping:
            raise OffsiteError(
                f"A tensor belongs to block {index}, which is not one of the adapter blocks "
                f"{sorted(mapping)}; ask its sender to make it again."
            )
        return f"{match[1]}{mapping[index]}"

    return {pattern.sub(move, name): value for name, value in tensors.items()}


def block_of(name: str, path: str) -> int | None:
    """The block index in a tensor name, or None when the tensor lies outside the block list."""
    match = re.search(rf"(?:^|\.){re.escape(path)}\.(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None


def freeze(model: nn.Module, trainable: Iterable[nn.Module] = ()) -> None:
    """Freeze every parameter of ``model`` but those of the ``trainable`` modules."""
    model.requires_grad_(False)
    for module in trainable:
        module.requires_grad_(True)
