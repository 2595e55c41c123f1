"""A delta kept apart from the full model: tensors and a manifest in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from offsite.codec import to_json, validate
from offsite.deltas import parse_method
from offsite.deltas.method import Method
from offsite.errors import require
from offsite.exchange.delta_contents import PEFT_CONFIG, PEFT_WEIGHTS
from offsite.exchange.file_set import Sha256
from offsite.exchange.ledger import APART
from offsite.exchange.manifest import Id
from offsite.exchange.side import HEAD, divide, side_file
from offsite.files import new_folder, read_json, write_file
from offsite.model.tensors import TensorEntry, describe, load_tensors, save_tensors

WEIGHTS = "plugged.safetensors"


class PluggedManifest(BaseModel):
    """What ``plugged.json`` says: which model, which blocks of it, which method, which tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["plugged"] = "plugged"
    schema_version: Literal[1] = 1
    fingerprint: Sha256
    method: dict[str, Any]
    adapter: tuple[int, ...]
    tensors: dict[str, TensorEntry]
    head: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    delta: Id | None = None


@dataclass(frozen=True)
class Plugged:
    """A delta in its place in the full model: tensors under the full model's names.

    Attributes:
        method: how it was tuned.
        adapter: positions in the full model of the blocks that it tunes.
        tensors: its values.
        fingerprint: of the full model.
        peft_config: the text of ``adapter_config.json`` where peft has the method.
        head: names of the tensors that are a classifier head; ``labels`` are its classes.
        delta: the id of the delta; None where an older release did not note it.
    """

    method: Method
    adapter: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    fingerprint: str
    peft_config: str | None = None
    head: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    delta: str | None = None

    @property
    def own(self) -> dict[str, torch.Tensor]:
        """The method's own tensors, without a head."""
        return divide(self.tensors, self.head)[0]

    @property
    def head_values(self) -> dict[str, torch.Tensor]:
        """The classifier head, if one came along.

        Raises:
            OffsiteError: a name that is not among the tensors.
        """
        known = set(self.head) <= set(self.tensors)
        require(known, "The delta names a head that is not among its tensors; plug it again.")
        return divide(self.tensors, self.head)[1]

    def save(self, folder: str | Path) -> None:
        """Write a folder for :func:`load_plugged`; where peft has the method, peft opens it too.

        Raises:
            OffsiteError: the folder exists.
        """
        with new_folder(folder) as partial:
            self.fill(partial)

    def fill(self, folder: Path) -> None:
        """Write the files of :meth:`save` into an empty folder."""
        save_tensors(self.own, folder / (PEFT_WEIGHTS if self.peft_config else WEIGHTS))
        if self.head:
            save_tensors(self.head_values, folder / side_file(HEAD))
        if self.peft_config:
            write_file(folder / PEFT_CONFIG, self.peft_config)
        manifest = PluggedManifest(
            fingerprint=self.fingerprint,
            method=to_json(self.method),
            adapter=self.adapter,
            tensors=describe(self.tensors),
            head=self.head,
            labels=self.labels,
            delta=self.delta,
        )
        write_file(folder / APART, manifest.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Plugged:
        """Read a folder that :meth:`save` wrote.

        Raises:
            OffsiteError: no such folder, or tensors other than it declares.
        """
        folder = Path(folder)
        require(
            (folder / APART).is_file(),
            f"'{folder}' has no {APART}; make one with: offsite plug --as-adapter.",
        )
        path = folder / APART
        manifest: PluggedManifest = validate(PluggedManifest, read_json(path), path)
        tensors = load_tensors(sorted(folder.glob("*.safetensors")), manifest.tensors)
        config = folder / PEFT_CONFIG
        return cls(
            parse_method(manifest.method),
            manifest.adapter,
            tensors,
            manifest.fingerprint,
            config.read_text(encoding="utf-8") if config.is_file() else None,
            manifest.head,
            manifest.labels,
            manifest.delta,
        )
