"""The delta: what the data owner ships back, and nothing else.

Tensors carry their names in the emulator. A delta of a peft method is laid out as a peft adapter
of the emulator (``adapter_config.json``, ``adapter_model.safetensors``) with a manifest beside it.
A classifier head has a file of its own, so that what stands beside it is what it would be without.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offsite.errors import OffsiteError
from offsite.exchange.authenticity import check_signature, digest
from offsite.exchange.file_set import README, hash_files
from offsite.exchange.manifest import (
    MAX_LABEL,
    MAX_LABELS,
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
from offsite.files import new_folder, read_json, shown, write_file
from offsite.model.tensors import TensorEntry, check_finite, describe, load_tensors, save_tensors
from offsite.training.guarantee import Guarantee

WEIGHTS = "delta.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILES = {"tensors": (WEIGHTS,), "peft": (PEFT_WEIGHTS, PEFT_CONFIG)}
MAX_SMALL_BYTES = 4 * 1024 * 1024
# options of peft that lead to code, to other models, or to tensors outside the adapter blocks
PEFT_REFUSED = (
    "auto_mapping", "base_model_name_or_path", "modules_to_save", "trainable_token_indices",
    "target_parameters", "layer_replication", "megatron_config", "revision",
)  # fmt: skip


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


def check_contents(folder: Path, manifest: DeltaManifest) -> None:
    """Refuse files a delta may not hold, and options that would cost its reader memory or more.

    Plugging never reads ``adapter_config.json``; it is judged for those who open it with peft.

    Raises:
        OffsiteError: other files than the format's own, a hostile peft configuration, or a method
            whose numbers exceed the tensors that came with it.
    """
    needed = (*FILES[manifest.format], *([side_file(HEAD)] if manifest.head else []))
    if odd := sorted((set(manifest.files) - {README}) ^ set(needed)):
        state = "lacks" if odd[0] in needed else "holds"
        raise OffsiteError(
            f"'{folder}' {state} '{odd[0]}'; a delta of this format has the files "
            f"{', '.join(needed)} and nothing else but a {README}, so ask for a fresh copy."
        )
    side = [n for n in manifest.files if not n.endswith(".safetensors")]
    if any(manifest.files[n].size > MAX_SMALL_BYTES for n in side):
        raise OffsiteError(
            f"'{folder}' has a file beside its tensors of more than {MAX_SMALL_BYTES} bytes; ask "
            "for a fresh copy."
        )
    if manifest.format == "peft":
        config = read_json(folder / PEFT_CONFIG)
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise OffsiteError(
                f"The {PEFT_CONFIG} of '{folder}' does not name a peft method; ask for a fresh "
                "copy."
            )
        for key in PEFT_REFUSED:
            if config.get(key):
                raise OffsiteError(
                    f"The {PEFT_CONFIG} of '{folder}' sets '{key}', which a delta may not; import "
                    "an adapter that tunes only the adapter blocks."
                )
        sizes = {k: v for k, v in config.items() if not k.endswith("key") and not is_flag(v)}
        check_options(sizes, manifest.tensors, "peft configuration")
    check_options(manifest.method, manifest.tensors)


def is_flag(value: Any) -> bool:
    """Whether a value of a configuration is text or a switch, which has no size."""
    return isinstance(value, (str, bool))


def check_options(
    method: Mapping[str, Any], tensors: Mapping[str, TensorEntry], what: str = "method"
) -> None:
    """Refuse options of a method that exceed the tensors that come with it.

    Raises:
        OffsiteError: a number larger than any dimension of a tensor (4096 is always allowed; a seed
            may be any), or a number written as text.
    """
    largest = max((n for entry in tensors.values() for n in entry.shape), default=0)
    for key, value in options(method):
        digits = isinstance(value, str) and is_number(value)
        large = isinstance(value, (int, float)) and abs(value) > max(largest, 4096)
        if digits or (large and key != "seed"):
            raise OffsiteError(
                f"The delta's {what} sets '{shown(key)}' to more than its tensors can hold; ask "
                "its sender to make it again."
            )


def is_number(text: str) -> bool:
    """Whether a text would be read as a number, ``inf`` and ``nan`` included."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def options(method: Any) -> Iterator[tuple[str, Any]]:
    """Every option of a method in JSON form, of the methods in a combination too."""
    for key, value in method.items():
        yield key, value
        for part in value if isinstance(value, (list, tuple)) else ():
            yield from options(part) if isinstance(part, dict) else ()


def check_labels(labels: Sequence[str]) -> None:
    """Refuse names of classes that a manifest cannot hold, by their number: they are private.

    Raises:
        OffsiteError: too many, one too long, or one with characters that cannot be seen.
    """
    if len(labels) > MAX_LABELS:
        raise OffsiteError(
            f"There are {len(labels)} classes, but a delta names {MAX_LABELS} at most; join some "
            "of them."
        )
    for number, label in enumerate(labels, start=1):
        if len(label) > MAX_LABEL or not label.isprintable():
            raise OffsiteError(
                f"The name of class {number} cannot travel with a delta; rename it to at most "
                f"{MAX_LABEL} printable characters."
            )


def new_delta(
    offer: OfferManifest,
    tensors: dict[str, torch.Tensor],
    method: dict[str, Any],
    *,
    peft_config: str | None = None,
    scores: dict[str, Any] | None = None,
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
        scores=scores or {},
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
