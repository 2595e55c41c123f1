"""The delta: what the data owner ships back, and nothing else.

Tensors carry their names in the emulator. A delta of a peft method is laid out as a peft adapter
of the emulator (``adapter_config.json``, ``adapter_model.safetensors``) with a manifest beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offsite.errors import OffsiteError
from offsite.files import new_folder, write_file
from offsite.manifest import (
    DeltaManifest,
    OfferManifest,
    hash_files,
    new_id,
    now,
    read_manifest,
    tool_versions,
    write_manifest,
)
from offsite.tensors import check_finite, describe, load_tensors, save_tensors

WEIGHTS = "delta.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ALLOWED_FILES = (WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG, "README.md")


@dataclass
class Delta:
    """What the data owner ships.

    Attributes:
        tensors: name in the emulator to value, or None while only the manifest has been read.
        manifest: method, parent offer, declared tensors.
        folder: where it was loaded from or saved to.
        peft_config: for a peft method, the text of its ``adapter_config.json``.
    """

    tensors: dict[str, torch.Tensor] | None
    manifest: DeltaManifest
    folder: Path | None = None
    peft_config: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of tensor data that travel."""
        return sum(entry.bytes for entry in self.manifest.tensors.values())

    def save(self, folder: str | Path) -> None:
        """Write the delta; the folder appears complete or not at all.

        Raises:
            OffsiteError: the folder exists, or a value is not finite.
        """
        tensors = self.values()
        check_finite(tensors)
        with new_folder(folder) as partial:
            peft = self.manifest.format == "peft"
            save_tensors(tensors, partial / (PEFT_WEIGHTS if peft else WEIGHTS))
            if peft and self.peft_config is not None:
                write_file(partial / PEFT_CONFIG, self.peft_config)
            self.manifest = self.manifest.model_copy(
                update={"files": hash_files(partial), "tensors": describe(tensors)}
            )
            write_manifest(partial, self.manifest)
        self.folder = Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Delta:
        """Verify a delta's files; its tensors are read by :meth:`values`, after the contract check.

        Raises:
            OffsiteError: not a delta, changed, truncated, or with files a delta may not hold.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, DeltaManifest)
        for name in manifest.files:
            if name not in ALLOWED_FILES:
                raise OffsiteError(
                    f"'{folder}' holds '{name}'; a delta may hold only {', '.join(ALLOWED_FILES)}."
                )
        return cls(None, manifest, folder)

    def values(self) -> dict[str, torch.Tensor]:
        """The tensors, read from disk if need be.

        Raises:
            OffsiteError: header other than declared, or a value that is not finite.
        """
        if self.tensors is None:
            assert self.folder is not None
            files = sorted(self.folder.glob("*.safetensors"))
            self.tensors = load_tensors(files, self.manifest.tensors)
        return self.tensors


def new_delta(
    offer: OfferManifest,
    tensors: dict[str, torch.Tensor],
    method: dict[str, Any],
    *,
    peft_config: str | None = None,
    scores: dict[str, Any] | None = None,
) -> Delta:
    """A delta that answers ``offer``."""
    manifest = DeltaManifest(
        id=new_id(),
        created=now(),
        model_name=offer.model_name,
        task=offer.task,
        block_path=offer.block_path,
        adapter=offer.adapter,
        files={},
        tensors=describe(tensors),
        tools=tool_versions(),
        scores=scores or {},
        parent=offer.id,
        round=offer.round,
        method=method,
        format="peft" if peft_config else "tensors",
    )
    return Delta(tensors, manifest, peft_config=peft_config)
