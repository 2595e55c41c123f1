"""Describe what an offer, a delta, a record or a model holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from offsite.codec import to_json
from offsite.compress.align import Align
from offsite.compress.distill import Distill
from offsite.deltas import method_text
from offsite.errors import OffsiteError, require
from offsite.exchange.bounds import MAX_CHANGE
from offsite.exchange.delta import Delta
from offsite.exchange.file_set import MANIFEST
from offsite.exchange.ledger import APART, MERGED
from offsite.exchange.manifest import OfferManifest
from offsite.exchange.offer import read_offer
from offsite.exchange.record import Record
from offsite.exchange.side import readable
from offsite.files import read_json, shown
from offsite.model.checkpoint import Checkpoint
from offsite.model.configuration import load_config
from offsite.model.kind import kind_of_config
from offsite.owner.plugged import Plugged
from offsite.report.structure import delta_tree, model_tree, ranges

ALIGNING = (Align.kind, Distill.kind)
UNALIGNED = (
    "Tuning through an emulator that is not aligned can end worse than no tuning, on a model that "
    "was pretrained. Make the offer with --data, or measure it with 'offsite lab'."
)
Shown = tuple[dict[str, Any], list[Any]]


def inspect_path(path: Path, base: str | None = None) -> Shown:
    """What to show of a path: data for ``--json``, and lines for people.

    Args:
        base: the offer a delta answers, or the full model it was plugged into: its tensors are then
            shown in their places there.

    Raises:
        OffsiteError: nothing that offsite knows, or a base for something that has none.
    """
    if path.is_dir() and (path / APART).is_file():
        return inspect_plugged(path, base)
    if path.is_dir() and (path / MANIFEST).is_file():
        kind = read_json(path / MANIFEST)
        if not (isinstance(kind, dict) and kind.get("kind") == "offer"):
            return inspect_delta(path, base)
    require(base is None, f"'{path}' is not a delta, so --base has no effect; leave it out.")
    if path.is_dir() and (path / MANIFEST).is_file():
        return inspect_offer(path)
    if path.is_dir() and (path / "config.json").is_file():
        return inspect_model(path)
    if path.is_file() and path.suffix == ".json":
        return inspect_record(path)
    raise OffsiteError(
        f"'{path}' is not an offer, delta, plugged delta, record (.json) or model folder; name "
        "one of these."
    )


def skeleton_of(model: str | Path) -> Any:
    """A model without weights, from its folder or its hub name."""
    return Checkpoint(str(model), kind_of_config(load_config(model))).outline


def facts(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    """Two columns without lines; brackets and colons of somebody else are not markup here."""
    heading = Text(title, style="table.title")
    table = Table(title=heading, title_justify="left", show_header=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(shown(value)))
    return table


def inspect_offer(path: Path) -> Shown:
    """An offer: what it is, its blocks, what it accepts in return."""
    manifest, skeleton, words = read_offer(path)
    size = sum(entry.bytes for entry in manifest.tensors.values())
    special = sorted({spec.kind for spec in manifest.layers.values()})
    rows: list[tuple[str, object]] = [
        ("model", manifest.model_name),
        ("id", manifest.id),
        ("created", manifest.created),
        ("expires", manifest.expires or "never"),
        ("task", manifest.task),
        ("adapter blocks", ", ".join(map(str, manifest.adapter))),
        ("tensors", f"{len(manifest.tensors)}, {size:,} bytes"),
        ("other layers", ", ".join(special) or "none: plain transformers can load it"),
        ("shared blocks", len(manifest.shared) or "none"),
        *side_facts(manifest),
        *(("words", line) for line in [*words.lines()] or ["none besides the vocabulary"]),
        ("returns at most", f"{manifest.contract.max_bytes:,} bytes"),
        ("a tensor changes by", f"at most {MAX_CHANGE:g} times its norm and 1 in each value"),
    ]
    prefix = tuple(f"{manifest.block_path}.{index}." for index in manifest.adapter)
    tuned = {name for name, _ in skeleton.named_parameters() if name.startswith(prefix)}
    data = manifest.model_dump(mode="json", exclude={"tensors", "contract"})
    data |= {"bytes": size, "words": asdict(words)}
    return data, [facts(f"offer {path}", rows), model_tree(skeleton, tuned)]


def side_facts(manifest: OfferManifest) -> list[tuple[str, object]]:
    """The groups of side tensors that an offer brings, with their shapes."""
    return [
        (readable(name), ", ".join(f"{key} {list(entry.shape)}" for key, entry in entries.items()))
        for name, entries in manifest.side.items()
    ] or [("side tensors", "none")]


def inspect_delta(path: Path, base: str | None) -> Shown:
    """A delta: its offer, its tensors and, with the offer at hand, their places in the model."""
    delta = Delta.load(path)
    manifest = delta.manifest
    rows: list[tuple[str, object]] = [
        ("model", manifest.model_name),
        ("id", manifest.id),
        ("answers offer", manifest.parent),
        ("created", manifest.created),
        ("method", method_text(manifest.method)),
        ("format", "peft adapter" if manifest.format == "peft" else "tensors"),
        ("tensors", f"{len(manifest.tensors)}, {delta.bytes:,} bytes"),
    ]
    if manifest.labels:
        rows.append(("labels", ", ".join(manifest.labels)))
    data = manifest.model_dump(mode="json", exclude={"tensors"})
    skeleton, title = None, f"{method_text(manifest.method)} delta"
    if base is not None:
        offer, skeleton, _ = read_offer(base)
        require(
            offer.id == manifest.parent,
            f"The delta '{path}' does not answer '{base}'; give its own offer.",
        )
        title = f"{manifest.model_name} with a {title}"
    shapes = {name: entry.shape for name, entry in manifest.tensors.items()}
    tree = delta_tree(title, shapes, skeleton)
    return {**data, "bytes": delta.bytes}, [facts(f"delta {path}", rows), tree]


def inspect_plugged(path: Path, base: str | None) -> Shown:
    """A delta kept apart from the full model: its method, and where its tensors go."""
    plugged = Plugged.load(path)
    method, tensors = to_json(plugged.method), plugged.tensors
    size = sum(tensor.nbytes for tensor in tensors.values())
    rows: list[tuple[str, object]] = [
        ("method", method_text(method)),
        ("blocks", ranges(plugged.adapter)),
        ("model", f"fingerprint {plugged.fingerprint[:16]}"),
        ("format", "peft adapter" if plugged.peft_config else "for offsite.load_plugged"),
        ("tensors", f"{len(tensors)}, {size:,} bytes"),
    ]
    skeleton, title = None, f"{method_text(method)} delta"
    if base is not None:
        skeleton, title = skeleton_of(base), f"{Path(base).name} with a {title}"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    data = {"kind": "plugged", "method": method, "adapter": plugged.adapter, "bytes": size}
    tree = delta_tree(title, shapes, skeleton)
    return data, [facts(f"plugged delta {path}", rows), tree]


def inspect_record(path: Path) -> Shown:
    """A record: the offers of one model, and what they disclose together."""
    record = Record.load(path)
    table = Table("offer", "adapter", "middle", "recipe", "aligned", "deltas accepted")
    unaligned = False
    for offer in record.offers:
        steps = " > ".join(shown(step["kind"]) for step in offer.recipe) or "whole middle"
        places = ",".join(map(str, offer.middle))
        accepted = ", ".join(a.delta[:8] for a in offer.accepted) or "none"
        aligned = any(step.get("kind") in ALIGNING for step in offer.recipe)
        unaligned |= bool(offer.recipe) and not aligned
        state = ("yes" if aligned else "no") if offer.recipe else "-"
        blocks = ",".join(map(str, offer.adapter))
        cells = (offer.offer[:8], blocks, places, steps, state, accepted)
        table.add_row(*map(Text, cells))
    rows: list[tuple[str, object]] = [
        ("model", record.model_name),
        ("fingerprint", record.fingerprint[:16]),
        ("verbatim", f"{record.verbatim:.1%} of all parameters, all offers together"),
    ]
    data = record.model_dump(mode="json", exclude={"offers": {"__all__": {"contract"}}})
    lines = [facts(f"record {path}", rows), table, *([UNALIGNED] if unaligned else [])]
    return {**data, "verbatim": record.verbatim}, lines


def inspect_model(path: Path) -> Shown:
    """A model folder: its structure, and in a tuned model what tuning changed."""
    config = load_config(path)
    names = getattr(config, "architectures", None) or [""]
    skeleton = skeleton_of(path)
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    note = read_json(path / MERGED) if (path / MERGED).is_file() else {}
    tuned = {str(name) for name in note.get("tuned", ())} if isinstance(note, dict) else set()
    data = {"kind": "model", "architecture": names[0], "parameters": count, "tuned": sorted(tuned)}
    return data, [model_tree(skeleton, tuned)]
