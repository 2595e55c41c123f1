"""Read the tensors of a checkpoint from disk one at a time, as transformers loads them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from offsite.errors import OffsiteError
from offsite.model.blocks import block_of, block_path, rename_blocks
from offsite.model.tensors import is_finite
from offsite.model.weights import StoredTensor

Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint that fits its model, with its tensors still on disk.

    Attributes:
        name: folder or hub name, for messages.
        skeleton: the model on the meta device, as transformers loads it: dtypes, tied parameters.
        stored: every tensor of the files by its name there.
        names: for each tensor of the model, the stored ones it is made of.
        converted: those of ``names`` that transformers computes from the stored ones, as for
            experts; of several tensors computed together, the first is named.
        empty: tensors of a classifier head that the checkpoint lacks; they are zeros.
    """

    name: str
    skeleton: Any
    stored: Mapping[str, StoredTensor]
    names: Names
    converted: frozenset[str]
    empty: tuple[str, ...] = ()

    def source(self) -> dict[str, Any]:
        """The stored tensors that the model uses, unread, for transformers' own loader."""
        used = {key for keys in self.names.values() for key in keys}
        paths = {self.stored[key].file for key in used}
        files: dict[Path, Any] = {path: safe_open(path, framework="pt") for path in paths}
        found = {
            key: files[tensor.file].get_slice(tensor.key)
            for key, tensor in self.stored.items()
            if key in used
        }
        state = self.skeleton.state_dict()
        return found | {name: zeros(state[name]) for name in self.empty}

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
        """The wanted tensors of the model, one after the other, in the dtype it holds them in.

        Each has memory of its own, so that no file stays mapped longer than it is read.
        """
        receiver = copy.deepcopy(self.skeleton)
        state = self.skeleton.state_dict()
        for name, part in self.parts(wanted):
            keys = self.names[name]
            if name in self.converted or len(keys) > 1:
                yield from convert(receiver, part)
            else:
                yield name, part.pop(keys[0]).to(state[name].dtype)
        for name in filter(wanted, self.empty):
            yield name, zeros(state[name])

    def parts(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """The wanted tensors of the model, each with the stored ones it is made of.

        They come file by file, so that each is opened once: one at a time, for an open file counts
        as memory. What lies in several files comes last.
        """
        by_file: dict[tuple[Path, ...], list[str]] = {}
        for name in filter(wanted, self.names):
            files = dict.fromkeys(self.stored[key].file for key in self.names[name])
            by_file.setdefault(tuple(files), []).append(name)
        for files_, names in sorted(by_file.items(), key=lambda item: len(item[0])):
            if len(files_) > 1:
                yield from ((name, self.gathered(files_, self.names[name])) for name in names)
                continue
            with safe_open(files_[0], framework="pt") as opened:
                for name in names:
                    yield name, {key: self.read(opened, key) for key in self.names[name]}

    def gathered(self, files: Sequence[Path], keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """Stored tensors that lie in several files."""
        found: dict[str, torch.Tensor] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                own = (key for key in keys if self.stored[key].file == file)
                found |= {key: self.read(opened, key) for key in own}
        return {key: found[key] for key in keys}

    def read(self, opened: Any, key: str) -> torch.Tensor:
        """One stored tensor of an open file, in memory of its own."""
        tensor: torch.Tensor = opened.get_tensor(self.stored[key].key).clone()
        return tensor

    def blocks(self, keep: Sequence[int]) -> dict[str, torch.Tensor]:
        """The tensors outside the block list and of the blocks ``keep``, renumbered."""
        path = block_path(self.skeleton)
        mapping = {position: index for index, position in enumerate(keep)}

        def wanted(name: str) -> bool:
            position = block_of(name, path)
            return position is None or position in mapping

        return rename_blocks(dict(self.tensors(wanted)), path, mapping)

    def fingerprint(self) -> str:
        """:func:`fingerprint` of the model, reading one tensor at a time.

        Raises:
            OffsiteError: a parameter that holds NaN or infinity.
        """
        state = self.skeleton.state_dict(keep_vars=True)
        first = {id(tensor): name for name, tensor in self.skeleton.named_parameters()}

        def once() -> Iterator[tuple[str, torch.Tensor]]:
            """Parameters under their first name; a tied one that is stored twice counts once."""
            for name, tensor in self.tensors(lambda name: id(state[name]) in first):
                if known := first.pop(id(state[name]), None):
                    if not is_finite(tensor):
                        raise OffsiteError(
                            f"The tensor '{known}' of '{self.name}' holds NaN or infinity, so the "
                            "model gives no results; use a checkpoint without such values."
                        )
                    yield known, tensor

        return fingerprint(once())


def zeros(like: torch.Tensor) -> torch.Tensor:
    """Zeros on the CPU of the shape and dtype of a tensor on the meta device."""
    return torch.zeros(like.shape, dtype=like.dtype)


def convert(receiver: nn.Module, part: dict[str, torch.Tensor]) -> Iterator[tuple[str, Any]]:
    """The tensors of a model that transformers makes out of some stored ones, as for experts.

    Args:
        receiver: the model on the meta device; it is left as it was.
        part: stored tensors by their names in the checkpoint.
    """
    before = receiver.state_dict(keep_vars=True)
    mapping = get_model_conversion_mapping(receiver)
    options = LoadStateDictConfig(weight_mapping=mapping)
    convert_and_load_state_dict_in_model(receiver, part, options)
    for name, tensor in receiver.state_dict(keep_vars=True).items():
        if not tensor.is_meta:
            owner, _, leaf = name.rpartition(".")
            holder = receiver.get_submodule(owner)
            table = holder._parameters if leaf in holder._parameters else holder._buffers
            table[leaf] = before[name]
            yield name, tensor.detach()


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
