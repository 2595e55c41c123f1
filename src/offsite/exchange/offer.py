"""The offer: adapter, emulator, ends, tokenizer and manifest, as one folder.

When the emulator holds only the family's own blocks, the folder is an ordinary transformers
checkpoint. Otherwise its weights are named ``offer.safetensors``, so that a plain
``from_pretrained`` fails loudly instead of filling gaps with random numbers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from offsite.errors import OffsiteError
from offsite.exchange.allowed import keep_allowed
from offsite.exchange.authenticity import check_signature, digest
from offsite.exchange.file_set import copy_verified, hash_files
from offsite.exchange.hostile import limit_modules, module_limit
from offsite.exchange.manifest import OfferManifest, read_manifest, write_manifest
from offsite.exchange.side import (
    SideTensors,
    attach_side,
    side_file,
    sides_of,
    vet_sides,
)
from offsite.exchange.special import build_special, unique_tensors
from offsite.exchange.vetting import (
    SPECIAL,
    scrub,
    vet_contents,
    vet_depth,
    vet_family,
    vet_files,
    vet_tensors,
)
from offsite.exchange.wording import Wording
from offsite.files import new_folder, read_json
from offsite.model import surgery
from offsite.model.blocks import block_path
from offsite.model.checkpoint import build_skeleton, cannot_move, fill_model, quiet
from offsite.model.configuration import load_config, load_generation
from offsite.model.kind import kind_of_task
from offsite.model.processor import check_saved, read_processor
from offsite.model.tensors import describe, load_tensors, read_header, save_tensors

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
MAX_SHARD = "4GB"


class Kept(Protocol):
    """What stays with the owner of an offer: its record. The tuner's side knows no more of it."""

    @property
    def path(self) -> Path | None:
        """Where it was saved; None if it was not."""

    def save(self, path: str | Path, *, sent: Mapping[str, str | None]) -> None:
        """Write it, beside what is there already; ``sent`` maps offers to their digests."""


@dataclass
class Offer:
    """What the model owner ships.

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

        No offer appears without its record: that is written first. Without it no delta of the offer
        could be plugged.

        Args:
            folder: where to write the offer; must not exist.
            record: where to write its private record, or to add it to the model's other offers. By
                default the file where the record is, or else ``FOLDER.record.json``.

        Raises:
            OffsiteError: the folder exists, something in the model cannot travel, or the record
                cannot be written there.
        """
        folder = Path(folder)
        with new_folder(folder) as partial:
            self.manifest = write_offer(self, partial)
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

        Everything is checked before it is parsed, in a private copy, and compared with the declared
        tensors before memory is taken for it.

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
        inner: an empty folder for private copies of the files beside the weights.

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

    All is judged as :meth:`Offer.load` does.

    Raises:
        OffsiteError: see :meth:`Offer.load`.
    """
    with tempfile.TemporaryDirectory(prefix="offsite-") as private:
        inner = Path(private)
        manifest, skeleton, config, _ = vet_offer(Path(folder), inner)
        kind = kind_of_task(manifest.task)
        processor = read_processor(inner, kind, folder, config=config)
        return manifest, skeleton, Wording.of(processor, config)


def check_ends(model: Any, family: Any) -> None:
    """Refuse a model whose ends hold a part for every block when blocks were left out.

    Raises:
        OffsiteError: naming the tensor (per-layer embeddings, as in Gemma 3n).
    """
    own, path = dict(model.named_parameters()), f"{block_path(family)}."
    for name, parameter in family.named_parameters():
        if not name.startswith(path) and name in own and own[name].shape != parameter.shape:
            raise cannot_move(name, in_block=False)


def check_written(folder: Path, config: Any) -> None:
    """Refuse a model of whose inner configurations transformers leaves a size out.

    Raises:
        OffsiteError: a reader of the folder's config.json would build a model of another size.
    """
    written = read_json(folder / "config.json")
    for part in config.sub_configs:
        own, said = getattr(config, part, None), written.get(part)
        if own is None or not isinstance(said, dict):
            continue
        usual = type(own)().to_dict()
        lost = [k for k in SIZES if k not in said and usual.get(k) != getattr(own, k, usual.get(k))]
        if lost:
            raise OffsiteError(
                f"transformers leaves '{lost[0]}' out of the {part} that it writes for a "
                f"'{config.model_type}' model, so a reader of the offer would build a model of "
                "another size; this family cannot be offered."
            )


def write_offer(offer: Offer, folder: Path) -> OfferManifest:
    """Fill an empty folder and return the finished manifest."""
    model = offer.model
    kind = kind_of_task(offer.manifest.task)
    family = offer.family or build_skeleton(model.config, kind.auto_class)
    check_ends(model, family)
    specs, shared = surgery.find_specs(model, family), surgery.find_shared(model)
    if specs or shared:
        tensors = unique_tensors(model, shared)
        save_tensors(tensors, folder / SPECIAL)
        entries = describe(tensors)
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None):
            model.generation_config.save_pretrained(folder)
    else:
        model._weight_conversions = None  # those of the family, and not of how it was loaded
        with quiet():
            model.save_pretrained(folder, max_shard_size=MAX_SHARD)
        entries = {}
        for path in folder.glob("*.safetensors"):
            entries |= read_header(path)
    if offer.processor is not None:
        offer.processor.save_pretrained(folder)
        shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    keep_allowed(folder, model, offer.processor)
    scrub(folder)
    check_written(folder, model.config)
    sides = sides_of(model)
    for group in sides.values():
        save_tensors(group.tensors, folder / group.file)
    manifest = offer.manifest.model_copy(
        update={
            "layers": specs,
            "shared": shared,
            "tensors": dict(sorted(entries.items())),
            **{name: group.entries for name, group in sides.items()},
            "files": hash_files(folder),
        }
    )
    vet_contents(folder, manifest, vet_files(folder, manifest))
    check_saved(offer.processor, folder, kind_of_task(manifest.task))
    write_manifest(folder, manifest)
    return read_manifest(folder, OfferManifest)  # as its reader will see it
