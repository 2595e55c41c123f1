"""Write the folder of an offer, and check it as its reader will."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.exchange.allowed import keep_allowed
from offsite.exchange.file_set import hash_files
from offsite.exchange.manifest import OfferManifest, read_manifest, write_manifest
from offsite.exchange.side import sides_of
from offsite.exchange.special import unique_tensors
from offsite.exchange.vetting import SPECIAL, scrub, vet_contents, vet_files
from offsite.files import read_json
from offsite.model import surgery
from offsite.model.blocks import block_path
from offsite.model.checkpoint import build_skeleton, cannot_move, quiet
from offsite.model.kind import kind_of_task
from offsite.model.processor import check_saved
from offsite.model.tensors import describe, read_header, save_tensors

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
MAX_SHARD = "4GB"


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


def write_offer(
    folder: Path, manifest: OfferManifest, model: Any, processor: Any, family: Any
) -> OfferManifest:
    """Fill an empty folder with an offer and return the finished manifest.

    Args:
        folder: an empty folder.
        manifest: what the offer says of itself; its files and tensors are filled in here.
        model: the emulator between its adapter blocks.
        processor: tokenizer or image processor, or None.
        family: the model that the configuration alone describes; None builds it without weights.

    Raises:
        OffsiteError: something in the model cannot be sent, or a reader would refuse the offer.
    """
    kind = kind_of_task(manifest.task)
    family = family or build_skeleton(model.config, kind.auto_class)
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
    if processor is not None:
        processor.save_pretrained(folder)
        shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    keep_allowed(folder, model, processor)
    scrub(folder)
    check_written(folder, model.config)
    sides = sides_of(model)
    for group in sides.values():
        save_tensors(group.tensors, folder / group.file)
    manifest = manifest.model_copy(
        update={
            "layers": specs,
            "shared": shared,
            "tensors": dict(sorted(entries.items())),
            **{name: group.entries for name, group in sides.items()},
            "files": hash_files(folder),
        }
    )
    vet_contents(folder, manifest, vet_files(folder, manifest))
    check_saved(processor, folder, kind)
    write_manifest(folder, manifest)
    return read_manifest(folder, OfferManifest)  # as its reader will see it
