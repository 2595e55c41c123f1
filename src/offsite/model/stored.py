"""The tensors of a checkpoint as it is stored: one at a time, under their names in the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from offsite.errors import OffsiteError
from offsite.model.blocks import block_of, block_path, rename_blocks
from offsite.model.heads import head_tensors

IMAGES = "AutoModelForImageClassification"


def shard_files(name: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, local or from the hub.

    Raises:
        OffsiteError: the checkpoint has no safetensors weights.
    """
    try:
        index = cached_file(
            str(name), SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False
        )
        if index:
            return [Path(f) for f in get_checkpoint_shard_files(str(name), index)[0]]
        single = cached_file(
            str(name), SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False
        )
    except OSError:
        single = None
    if not single:
        raise OffsiteError(f"'{name}' has no safetensors weights; convert it to safetensors first.")
    return [Path(single)]


def stored_tensors(
    name: str | Path, skeleton: nn.Module, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted tensors of a checkpoint, one at a time, under their names in the model.

    Each has memory of its own, so that no file stays mapped longer than it is read.
    A classifier head that the checkpoint lacks comes as zeros; see :func:`stored_names`.
    """
    names = stored_names(name, skeleton)
    for file in sorted({file for file, _ in names.values()}):
        with safe_open(file, framework="pt") as shard:
            for candidate, (place, key) in names.items():
                if place == file and wanted(candidate):
                    yield candidate, shard.get_tensor(key).clone()
    for head, parameter in head_tensors(skeleton).items():
        if head not in names and wanted(head):
            yield head, torch.zeros(parameter.shape)


def stored_names(name: str | Path, skeleton: nn.Module) -> dict[str, tuple[Path, str]]:
    """For each tensor of a model that a checkpoint holds: the file, and its name there.

    Names of older releases are translated as transformers does it. Checkpoints saved from a bare
    backbone lack the name of its module in the model; it is added. Tensors that the model does not
    have (old buffers, tied heads, another tower) are passed over, but for blocks.

    Raises:
        OffsiteError: the checkpoint has more blocks than its configuration says.
    """
    known = dict(skeleton.named_parameters()) | dict(skeleton.named_buffers())
    path = block_path(skeleton)
    prefix, total = path.partition(".")[0], len(skeleton.get_submodule(path))  # type: ignore[arg-type]
    mapping = get_model_conversion_mapping(skeleton)  # type: ignore[arg-type]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    names: dict[str, tuple[Path, str]] = {}
    for file in shard_files(name):
        with safe_open(file, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 (not a dictionary)
                renamed = rename_source_key(key, renamings, [])[0]
                for base in (key, renamed):
                    for candidate in (base, f"{prefix}.{base}", base.removeprefix(f"{prefix}.")):
                        if candidate in known:
                            names.setdefault(candidate, (file, key))
                        elif (block_of(candidate, path) or 0) >= total:
                            raise OffsiteError(
                                f"The weights of '{name}' do not fit its architecture: they have "
                                f"more than the {total} blocks of its config.json."
                            )
    return names


def stored_dtype(name: str | Path) -> torch.dtype:
    """The dtype of a checkpoint's first floating-point tensor."""
    for file in shard_files(name):
        with safe_open(file, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 (not a dictionary)
                if (dtype := shard.get_tensor(key).dtype).is_floating_point:
                    return dtype
    return torch.float32


def is_converted(name: str | Path, skeleton: nn.Module) -> bool:
    """Whether transformers makes tensors of the blocks out of others on loading, as for experts.

    Such a checkpoint is read whole.
    """
    mapping = get_model_conversion_mapping(skeleton)  # type: ignore[arg-type]
    if all(isinstance(entry, WeightRenaming) for entry in mapping):
        return False
    path, stored = block_path(skeleton), stored_names(name, skeleton)
    return any(
        block_of(parameter, path) is not None and parameter not in stored
        for parameter, _ in skeleton.named_parameters()
    )


def read_blocks(
    name: str | Path, skeleton: nn.Module, path: str, keep: Sequence[int], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint outside the block list and of the blocks ``keep``, renumbered.

    Floating-point tensors come in ``dtype``.
    """
    mapping = {position: index for index, position in enumerate(keep)}

    def wanted(key: str) -> bool:
        position = block_of(key, path)
        return position is None or position in mapping

    tensors = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in stored_tensors(name, skeleton, wanted)
    }
    return rename_blocks(tensors, path, mapping)


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A name for a set of weights that does not depend on the dtype they were loaded in.

    SHA-256 over the sorted names, shapes and SHA-256 of every parameter rounded to bfloat16.
    (Weights of float32 must not have gone through float16, which would round them twice.)
    """
    lines = []
    for name, tensor in tensors:
        raw = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
        digest = hashlib.sha256(raw.numpy().data).hexdigest()
        lines.append(f"{name} {tuple(tensor.shape)} {digest}")
        del tensor, raw  # before the next one is read
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """:func:`fingerprint` of a model in memory; tied parameters count once."""
    return fingerprint(model.named_parameters())
