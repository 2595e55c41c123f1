"""Side tensors: named groups that are sent with a model's own tensors, each in its own file.

An offer may bring a prompt decoder, a delta a classifier head. Manifest, vetting, contract, record
and measurements handle every group alike, by its name. ``CHECKS`` names the groups that an offer
may bring; the two schemas below say what manifests and records hold of them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, Field
from torch import nn

from offsite.errors import OffsiteError
from offsite.exchange.file_set import MAX_SIDE_BYTES, Sha256
from offsite.exchange.prompt_decoder import check_decoder
from offsite.files import check_free, shown, writing
from offsite.model.tensors import (
    TensorEntry,
    TensorName,
    describe,
    load_tensors,
    read_header,
    save_tensors,
)

HEAD = "head"  # the group of a delta that holds a classifier head
SIDE_MODULES = "side_tensors"  # the module of a model that holds its groups
CHECKS: Mapping[str, Callable[[Mapping[str, TensorEntry], Any], None]] = {
    "prompt_decoder": check_decoder,
}
GivenSides = Mapping[str, Mapping[str, torch.Tensor] | str | Path | None]
Value = TypeVar("Value")


class SideEntries(BaseModel):
    """The tensors of an offer's groups in its manifest, where every group is a key."""

    prompt_decoder: Annotated[
        dict[TensorName, TensorEntry], Field(exclude_if=lambda entries: not entries)
    ] = {}

    @property
    def side(self) -> dict[str, dict[str, TensorEntry]]:
        """The groups that the offer brings, by name."""
        return {name: entries for name in CHECKS if (entries := getattr(self, name))}


class SideHashes(BaseModel):
    """The hashes of an offer's groups in its record, where every group is a key."""

    prompt_decoder: Sha256 | None = None

    @property
    def side(self) -> dict[str, str]:
        """The hash of each group that the offer brought, by name."""
        return {name: value for name in CHECKS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, eq=False)
class SideTensors:
    """One group: its name and its tensors by their names."""

    name: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def file(self) -> str:
        """The name of its file in an offer or a delta."""
        return side_file(self.name)

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """What a manifest says of its tensors."""
        return describe(self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def hash(self) -> str:
        """SHA-256 over the names, shapes and values of its tensors."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            value = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.view(torch.uint8).numpy().data)
        return digest.hexdigest()


class SideModule(nn.Module):
    """A group of side tensors of a model.

    Its tensors are buffers that follow the model to a device but keep their dtype, and that no
    checkpoint of the model contains.
    """

    def __init__(self, group: SideTensors) -> None:
        super().__init__()
        self.group = group.name
        for name, tensor in group.tensors.items():
            self.register_buffer(name, tensor.detach(), persistent=False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors, by name."""
        return dict(self.named_buffers())

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SideModule:
        probe = torch.empty(0, device=next(self.buffers()).device)
        device = fn(probe).device  # the model may change its dtype, side tensors do not
        super()._apply(lambda tensor: tensor.to(device), recurse)  # type: ignore[no-untyped-call]
        return self


def side_file(name: str) -> str:
    """The name of a group's file."""
    return f"{name}.safetensors"


def readable(name: str) -> str:
    """The name of a group in messages: ``prompt decoder``."""
    return name.replace("_", " ")


def divide(
    tensors: Mapping[str, Value], names: Iterable[str]
) -> tuple[dict[str, Value], dict[str, Value]]:
    """A method's own tensors, and those called ``names``, which form a group."""
    apart = set(names)
    own = {name: value for name, value in tensors.items() if name not in apart}
    return own, {name: value for name, value in tensors.items() if name in apart}


def read_sides(given: GivenSides) -> list[SideTensors]:
    """The groups that somebody gives by name.

    Args:
        given: for each group its tensors, its file, or an offer that brings it; None leaves it out.

    Raises:
        OffsiteError: an unknown group, no such file, or tensors that do not make such a group.
    """
    groups = []
    for name, value in given.items():
        if name not in CHECKS:
            raise OffsiteError(
                f"There are no side tensors called '{shown(name)}'; use {', '.join(CHECKS)}."
            )
        if isinstance(value, (str, Path)):
            groups.append(read_side(name, value))
        elif value is not None:
            CHECKS[name](describe(value), None)
            groups.append(SideTensors(name, dict(value)))
    return groups


def read_side(name: str, path: str | Path) -> SideTensors:
    """Read a group from a file of its own, or from an offer that brings it.

    Raises:
        OffsiteError: no such file, or tensors that do not make such a group or are not finite.
    """
    path = Path(path)
    path = path / side_file(name) if path.is_dir() else path
    if not path.is_file():
        raise OffsiteError(
            f"There is no {readable(name)} '{path}'; make one with: offsite "
            f"{name.replace('_', '-')}."
        )
    entries = read_header(path)
    CHECKS[name](entries, None)
    return SideTensors(name, load_tensors([path], entries))


def save_side(group: SideTensors, path: Path) -> None:
    """Write a group as one file, which appears complete or not at all.

    Raises:
        OffsiteError: the file exists, or cannot be written.
    """
    check_free(path)
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        save_tensors(group.tensors, Path(scratch) / group.file)
        os.rename(Path(scratch) / group.file, path)
        path.chmod(0o644)  # safetensors writes 0600, and the file is to be read by others


def attach_side(model: nn.Module, group: SideTensors) -> None:
    """Attach a group to a model, and replace an older one of its name.

    Raises:
        OffsiteError: tensors that this model cannot use.
    """
    CHECKS[group.name](group.entries, model)
    holder = getattr(model, SIDE_MODULES, None)
    holder = holder if isinstance(holder, nn.ModuleDict) else nn.ModuleDict()
    holder[group.name] = SideModule(group).to(next(model.parameters()).device)
    model.add_module(SIDE_MODULES, holder)


def side_modules(model: nn.Module) -> dict[str, SideModule]:
    """The groups of a model, as modules, by name."""
    holder = getattr(model, SIDE_MODULES, {})
    return {name: module for name, module in holder.items() if isinstance(module, SideModule)}


def sides_of(model: nn.Module) -> dict[str, SideTensors]:
    """The groups of a model, by name."""
    return {
        name: SideTensors(name, module.tensors()) for name, module in side_modules(model).items()
    }


def vet_sides(skeleton: nn.Module, declared: Mapping[str, Mapping[str, TensorEntry]]) -> None:
    """Hold the groups that an offer declares to what its model can use.

    Raises:
        OffsiteError: tensors that do not make such a group for this model, or more than 256 MiB.
    """
    for name, entries in declared.items():
        CHECKS[name](entries, skeleton)
        if sum(entry.bytes for entry in entries.values()) > MAX_SIDE_BYTES:
            raise OffsiteError(
                f"The offer's {readable(name)} has more than {MAX_SIDE_BYTES} bytes; ask its owner "
                "for a smaller one."
            )
