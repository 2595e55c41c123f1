"""The delta: what the data owner sends back, and nothing else.

Tensors carry their names in the emulator. If the method is one of peft's, peft can open the folder
as an adapter of the emulator. A classifier head has its own file, so the other files do not change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offsite.exchange.authenticity import check_signature, digest
from offsite.exchange.delta_contents import PEFT_CONFIG, PEFT_WEIGHTS, WEIGHTS, check_contents
from offsite.exchange.file_set import hash_files
from offsite.exchange.manifest import (
    DeltaManifest,
    OfferManifest,
    Reach,
    new_id,
    now,
    read_manifest,
    tool_versions,
    write_manifest,
)
from offsite.exchange.side import HEAD, divide, side_file
from offsite.files import new_folder, write_file
from offsite.model.tensors import check_finite, describe, load_tensors, save_tensors
from offsite.training.guarantee import Guarantee


@dataclass
class Delta:
    """What the data owner sends.

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
        """Bytes of the tensors."""
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
            own, head = divide(tensors, self.manifest.head)
            save_tensors(own, partial / (PEFT_WEIGHTS if peft else WEIGHTS))
            if head:
                save_tensors(head, partial / side_file(HEAD))
            if peft and self.peft_config is not None:
                write_file(partial / PEFT_CONFIG, self.peft_config)
            self.manifest = self.manifest.model_copy(
                update={"files": hash_files(partial), "tensors": describe(tensors)}
            )
            write_manifest(partial, self.manifest)
        self.folder = Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, require_signature: bool | None = None) -> Delta:
        """Verify a delta's files; its tensors are read by :meth:`values`, after the contract check.

        Args:
            folder: a delta folder.
            require_signature: whether a known peer must have signed it; None for "once a peer is
                pinned".

        Raises:
            OffsiteError: not a delta, changed, truncated, not signed as it should be, or with files
                a delta may not hold.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, DeltaManifest)
        check_signature(folder, manifest, require_signature)
        check_contents(folder, manifest)
        return cls(None, manifest, folder)

    def values(self) -> dict[str, torch.Tensor]:
        """The tensors, read from disk if need be.

        Raises:
            OffsiteError: header other than declared, or a value that is not finite.
        """
        if self.tensors is None:
            assert self.folder is not None
            names = [n for n in self.manifest.files if n.endswith(".safetensors")]
            hashes = {name: self.manifest.files[name].sha256 for name in names}
            files = [self.folder / name for name in names]
            self.tensors = load_tensors(files, self.manifest.tensors, hashes)
        return self.tensors


def new_delta(
    offer: OfferManifest,
    tensors: dict[str, torch.Tensor],
    method: dict[str, Any],
    *,
    peft_config: str | None = None,
    head: Sequence[str] = (),
    labels: Sequence[str] = (),
    reach: Reach = "adapter",
    dp: Guarantee | None = None,
) -> Delta:
    """A delta that answers ``offer``; ``head`` names the tensors that are a classifier head.

    Tensors of float64 are sent in float32, in which deltas are merged.
    """
    tensors = {n: t.float() if t.dtype == torch.float64 else t for n, t in tensors.items()}
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
        scores={},
        parent=offer.id,
        offer_digest=digest(offer),
        round=offer.round,
        method=method,
        format="peft" if peft_config else "tensors",
        head=tuple(head),
        labels=tuple(labels),
        reach=reach,
        dp=dp,
    )
    return Delta(tensors, manifest, peft_config=peft_config and scrub_peft(peft_config))


def scrub_peft(text: str) -> str:
    """A peft configuration without the base model's name, where peft writes a local path."""
    config = json.loads(text) | {"base_model_name_or_path": None, "revision": None}
    return json.dumps(config, indent=1, sort_keys=True) + "\n"
