"""The schema of what crosses the boundary, and the checks made before anything is trusted.

An offer or a delta is a flat folder of regular files. ``manifest.json`` names every other file with
size and SHA-256 and every tensor with dtype and shape. The order of the checks is: file set, sizes,
hashes, then parsing; unknown keys and unknown versions are refused.
"""

from __future__ import annotations

import importlib.metadata
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from offsite.errors import OffsiteError
from offsite.files import folder_files, read_json, sha256_file, write_file
from offsite.layers import Spec
from offsite.tensors import TensorEntry, parse

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(max_length=200)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """One file of the folder: bytes and SHA-256."""

    size: int
    sha256: Sha256


class Contract(_Model):
    """What the model owner accepts in return.

    Attributes:
        tensors: every tensor of the adapter blocks, by its name in the emulator.
        max_bytes: cap on the size of the returned folder.
        max_norm: bound on the L2 norm of all returned floating-point tensors together.
    """

    tensors: dict[str, TensorEntry]
    max_bytes: int
    max_norm: float


class Manifest(_Model):
    """What offers and deltas have in common."""

    schema_version: Literal[1] = 1
    id: Id
    created: datetime
    model_name: Word
    task: Word
    block_path: Word
    adapter: tuple[int, ...]
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]
    tools: dict[str, Word]
    scores: dict[str, Any] = {}


class OfferManifest(Manifest):
    """The manifest of an offer.

    ``adapter`` counts blocks of the emulator; where they stand in the full model is not said.
    ``layers`` and ``shared`` are empty when plain transformers can load the folder.
    """

    kind: Literal["offer"] = "offer"
    round: int = 1
    expires: datetime | None = None
    fingerprint: Sha256
    layers: dict[str, Spec] = {}
    shared: dict[int, int] = {}
    contract: Contract


class DeltaManifest(Manifest):
    """The manifest of a delta: ``parent`` is the id of the offer it answers."""

    kind: Literal["delta"] = "delta"
    parent: Id
    round: int = 1
    method: dict[str, Any]
    format: Literal["tensors", "peft"]


Kind = TypeVar("Kind", OfferManifest, DeltaManifest)


def new_id() -> str:
    """A random exchange id: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def now() -> datetime:
    """The present time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def tool_versions() -> dict[str, str]:
    """Versions of the packages that made a folder."""
    versions = {}
    for package in ("offsite", "torch", "transformers", "peft", "safetensors"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Entries for every file of a folder but the manifest."""
    return {
        name: FileEntry(size=size, sha256=sha256_file(folder / name))
        for name, size in folder_files(folder).items()
        if name != MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``."""
    write_file(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def read_manifest(folder: str | Path, kind: type[Kind]) -> Kind:
    """Check a folder against its manifest and return the manifest; reads no tensor.

    Raises:
        OffsiteError: not such a folder, another kind or version, an unknown key, a file missing,
            extra, of another size or with another hash.
    """
    folder = Path(folder)
    sizes = folder_files(folder)
    if MANIFEST not in sizes:
        raise OffsiteError(f"'{folder}' has no {MANIFEST}; it is not an offsite folder.")
    data = read_json(folder / MANIFEST)
    check_kind(data, kind.model_fields["kind"].default, folder)
    manifest: Kind = parse(kind, data, folder / MANIFEST)
    check_files(folder, sizes, manifest.files)
    return manifest


def check_kind(data: Any, kind: str, folder: Path) -> None:
    """Refuse another kind of folder or a schema version this package does not know."""
    found = data.get("kind") if isinstance(data, dict) else None
    if found != kind:
        raise OffsiteError(
            f"'{folder}' is {f'a folder of kind {str(found)[:20]!r}' if found else 'no manifest'}, "
            f"but {'an offer' if kind == 'offer' else f'a {kind}'} is needed here."
        )
    if data.get("schema_version") != SCHEMA_VERSION:
        raise OffsiteError(
            f"'{folder}' has schema version {str(data.get('schema_version'))[:20]}; this offsite "
            f"reads version {SCHEMA_VERSION}, so use a matching release."
        )


def check_files(folder: Path, sizes: Mapping[str, int], files: Mapping[str, FileEntry]) -> None:
    """Compare the files on disk with the manifest: the set, then sizes, then hashes."""
    present = set(sizes) - {MANIFEST}
    if odd := sorted(present ^ set(files)):
        state = "is missing" if odd[0] in files else "is not in the manifest"
        raise OffsiteError(f"The file '{odd[0]}' of '{folder}' {state}; the folder was changed.")
    for name, entry in files.items():
        if sizes[name] != entry.size:
            raise OffsiteError(
                f"The file '{name}' of '{folder}' has {sizes[name]} bytes instead of {entry.size}; "
                "it is truncated or was changed."
            )
    for name, entry in files.items():
        if sha256_file(folder / name) != entry.sha256:
            raise OffsiteError(
                f"The file '{name}' of '{folder}' does not have the SHA-256 of the manifest; "
                "it was changed, so ask for a fresh copy."
            )
