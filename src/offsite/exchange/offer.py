"""The offer: adapter, emulator, ends, tokenizer and manifest, as one folder.

When the emulator holds only the family's own blocks, the folder is an ordinary transformers
checkpoint. Otherwise its weights are named ``offer.safetensors``, so that a plain
``from_pretrained`` fails loudly instead of filling gaps with random values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from offsite.exchange.authenticity import check_signature, digest
from offsite.exchange.file_set import copy_verified
from offsite.exchange.hostile import limit_modules, module_limit
from offsite.exchange.manifest import OfferManifest, read_manifest
from offsite.exchange.side import (
    SideTensors,
    attach_side,
    side_file,
    vet_sides,
)
from offsite.exchange.special import build_special
from offsite.exchange.vetting import (
    vet_contents,
    vet_depth,
    vet_family,
    vet_files,
    vet_tensors,
)
from offsite.exchange.wording import Wording
from offsite.exchange.writing import write_offer
from offsite.files import new_folder
from offsite.model import surgery
from offsite.model.checkpoint import build_skeleton, fill_model
from offsite.model.configuration import load_config, load_generation
from offsite.model.kind import kind_of_task
from offsite.model.processor import read_processor
from offsite.model.tensors import load_tensors


class Kept(Protocol):
    """What stays with the owner of an offer: its record. The tuner's side knows no more of it."""

    @property
    def path(self) -> Path | None:
        """Where it was saved; None if it was not."""

    def save(self, path: str | Path, *, sent: Mapping[str, str | None]) -> None:
        """Write it, and keep what is there already; ``sent`` maps offers to their digests."""


@dataclass
class Offer:
    """What the model owner sends.

    Attributes:
        model: the emulator between its adapter blocks, a transformers model.
        manifest: what it is; ``manifest.files`` and ``manifest.tensors`` are filled by ``save``.
        processor: tokenizer or image processor, or None.
        folder: where it was loaded from or saved to.
        record: the owner's private record of an offer that was made here; None for a loaded one.
        family: the model that the configuration alone describes, which tells the layers apart that
            are not the family's; None lets :meth:`save` build one without weights.
    """

    model: Any
    manifest: OfferManifest
    processor: Any = None
    folder: Path | None = None
    record: Kept | None = None
    family: Any = None

    def save(self, folder: str | Path, record: str | Path | None = None) -> None:
        """Write the offer; the folder appears complete or not at all.

        The record is written first, because no delta of the offer can be plugged without it.

        Args:
            folder: where to write the offer; must not exist.
            record: where to write its private record, or to add it to the model's other offers. By
                default the file where the record is, or else ``FOLDER.record.json``.

        Raises:
            OffsiteError: the folder exists, something in the model cannot be sent, or the record
                cannot be written there.
        """
        folder = Path(folder)
        with new_folder(folder) as partial:
            self.manifest = write_offer(
                partial, self.manifest, self.model, self.processor, self.family
            )
            if self.record is not None:
                beside = self.record.path or folder.with_name(f"{folder.name}.record.json")
                sent = {self.manifest.id: digest(self.manifest)}
                self.record.save(record or beside, sent=sent)
        self.folder = folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: Any = None,
        before: Callable[[Any, Any], None] | None = None,
        require_signature: bool | None = None,
    ) -> Offer:
        """Verify and load an offer; nothing in the folder is executed.

        Every file is copied and checked before it is parsed, and its tensors are compared with the
        declared ones before memory is allocated.

        Args:
            folder: an offer folder.
            dtype: dtype to compute in; None for that of the weights.
            before: called with the processor and the configuration, before weights are read.
            require_signature: whether a known peer must have signed it; None for "once a peer is
                pinned".

        Raises:
            OffsiteError: not an offer, changed, not signed as it should be, or anything but a model
                of a family that transformers has, with layers of the allow-list.
        """
        folder = Path(folder)
        with tempfile.TemporaryDirectory(prefix="offsite-") as private:
            inner = Path(private)
            manifest, _, config, weights = vet_offer(folder, inner)
            check_signature(folder, manifest, require_signature)
            kind = kind_of_task(manifest.task)
            processor = read_processor(inner, kind, folder, config=config)
            if before is not None:
                before(processor, config)
            hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
            tensors = load_tensors([folder / name for name in weights], manifest.tensors, hashes)
            if manifest.layers or manifest.shared:
                model = build_special(config, manifest, kind.auto_class, tensors)
                model = model.to(dtype) if dtype else model
            else:
                build = kind.model_class(config)
                model = fill_model(build, config, tensors, folder, dtype=dtype)
            if (generation := load_generation(inner, folder)) is not None:
                model.generation_config = generation
        for name, entries in manifest.side.items():
            tensors = load_tensors([folder / side_file(name)], entries, hashes)
            attach_side(model, SideTensors(name, tensors))
        return cls(model, manifest, processor, folder)


def vet_offer(folder: Path, inner: Path) -> tuple[OfferManifest, Any, Any, list[str]]:
    """Check everything of an offer but the values of its tensors, and copy its small files.

    Args:
        folder: an offer folder.
        inner: an empty folder for private copies of the other files.

    Returns:
        The manifest; the model on the meta device, layers of the allow-list in place; its
        configuration; the names of its weight files.

    Raises:
        OffsiteError: see :meth:`Offer.load`.
    """
    manifest = read_manifest(folder, OfferManifest)
    weights = vet_files(folder, manifest)
    apart = (*weights, *map(side_file, manifest.side))
    small = {name: entry for name, entry in manifest.files.items() if name not in apart}
    copy_verified(folder, small, inner)
    vet_contents(inner, manifest, weights)
    config = load_config(inner, folder)
    vet_depth(config, manifest)
    with limit_modules(module_limit(len(manifest.tensors), len(manifest.shared))):
        skeleton = build_skeleton(config, kind_of_task(manifest.task).auto_class)
    vet_family(skeleton, manifest)
    surgery.rebuild(skeleton, manifest.layers)
    vet_tensors(skeleton, manifest)
    vet_sides(skeleton, manifest.side)
    return manifest, skeleton, config, weights


def read_offer(folder: str | Path) -> tuple[OfferManifest, Any, Wording]:
    """The manifest of an offer, its model without weights, and its words.

    All is checked as :meth:`Offer.load` does.

    Raises:
        OffsiteError: see :meth:`Offer.load`.
    """
    with tempfile.TemporaryDirectory(prefix="offsite-") as private:
        inner = Path(private)
        manifest, skeleton, config, _ = vet_offer(Path(folder), inner)
        kind = kind_of_task(manifest.task)
        processor = read_processor(inner, kind, folder, config=config)
        return manifest, skeleton, Wording.of(processor, config)
