"""The schemas of the manifests, and the checks made before anything else is read.

An offer or a delta is a flat folder of regular files. ``manifest.json`` names every other file with
size and SHA-256 and every tensor with dtype and shape. The order of the checks is: file set, sizes,
hashes, then parsing; unknown keys and unknown versions are refused.
"""

from __future__ import annotations

import importlib.metadata
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from offsite.codec import validate
from offsite.errors import OffsiteError
from offsite.exchange.file_set import (
    MANIFEST,
    Count,
    FileEntry,
    Sha256,
    check_files,
    check_names,
)
from offsite.exchange.side import SideEntries
from offsite.files import folder_files, read_json, shown, write_file
from offsite.model.layers import Spec
from offsite.model.tensors import TensorEntry, TensorName
from offsite.training.guarantee import Guarantee

SCHEMA_VERSION = 1
MAX_LABELS, MAX_LABEL = 65_536, 200


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that cannot be seen")
    return text


Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Word = Annotated[str, Field(max_length=MAX_LABEL), AfterValidator(_printable)]
Round = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Plain = Word | bool | int | Number | None
Reach = Literal["adapter", "all"]  # which blocks of the emulator a delta may tune
AdapterOnly = Annotated[Reach, Field(exclude_if=lambda reach: reach == "adapter")]


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)) or not numbers:
        raise ValueError("it must be at least one number, ascending, none twice")
    return numbers


def _named(method: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(method.get("kind"), str):
        raise ValueError("it must name its kind")
    return method


Method = Annotated[dict[Word, Plain | tuple[Plain, ...]], AfterValidator(_named)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_reach(text: str) -> Reach:
    """Which blocks a delta may tune, from ``adapter`` or ``all``.

    Raises:
        OffsiteError: any other word.
    """
    for reach in get_args(Reach):
        if text == reach:
            return reach  # type: ignore[no-any-return]
    raise OffsiteError(f"The reach '{shown(text)}' is unknown; use adapter or all.")


def check_name(name: str | None) -> None:
    """Refuse a name that no manifest can carry."""
    if name is not None and (len(name) > MAX_LABEL or not name.isprintable()):
        raise OffsiteError(f"A name has at most {MAX_LABEL} printable characters; choose another.")


class Contract(_Model):
    """What the model owner accepts in return.

    Attributes:
        tensors: every tensor of the adapter blocks, by its name in the emulator.
        max_bytes: cap on the size of the returned folder.
        max_norm: bound on the L2 norm of all returned floating-point tensors together.
        head: the classifier head of an image model, each tensor as for one class; the delta may
            return it for any classes, and its bytes are not counted.
        reach: ``all`` if a low-rank delta may tune the middle blocks as well.
    """

    tensors: dict[TensorName, TensorEntry]
    max_bytes: Count
    max_norm: Annotated[Number, Field(gt=0)]
    head: dict[TensorName, TensorEntry] = {}
    reach: AdapterOnly = "adapter"


class Manifest(_Model):
    """What offers and deltas have in common."""

    schema_version: Literal[1] = 1
    id: Id
    created: AwareDatetime
    model_name: Word
    task: Word
    block_path: Word
    adapter: Annotated[tuple[Count, ...], AfterValidator(_ascending)]
    files: dict[str, FileEntry]
    tensors: dict[TensorName, TensorEntry]
    tools: dict[Word, Word]
    scores: dict[Word, Plain | dict[Word, Plain]] = {}


class OfferManifest(Manifest, SideEntries):
    """The manifest of an offer.

    ``adapter`` counts blocks of the emulator; their positions in the full model are not given.
    ``layers`` and ``shared`` are empty when plain transformers can load the folder.
    ``fingerprint`` is a salted hash of the full model's fingerprint
    (:mod:`offsite.exchange.commitment`); old offers hold that fingerprint itself.
    ``side`` names the tensors of its groups of side tensors (:mod:`offsite.exchange.side`).
    """

    kind: Literal["offer"] = "offer"
    round: Round = 1
    expires: AwareDatetime | None = None
    fingerprint: Sha256
    layers: dict[TensorName, Spec] = {}
    shared: dict[int, int] = {}
    contract: Contract


class DeltaManifest(Manifest):
    """The manifest of a delta: ``parent`` is the id of the offer it answers.

    ``method`` may hold others, which hold none: a combination. ``head`` names the tensors of a
    classifier head, which is sent whole; ``labels`` its classes. ``reach`` is ``all`` for a delta
    that tunes every block of the emulator. ``dp`` is the differential privacy that the tuner claims
    for the examples of its data, if any; nobody else can check it. ``offer_digest`` says which
    manifest the offer had.
    """

    kind: Literal["delta"] = "delta"
    parent: Id
    round: Round = 1
    method: Annotated[
        dict[Word, Plain | tuple[Plain, ...] | tuple[Method, ...]], AfterValidator(_named)
    ]
    format: Literal["tensors", "peft"]
    head: tuple[TensorName, ...] = ()
    labels: Annotated[tuple[Word, ...], Field(max_length=MAX_LABELS)] = ()
    reach: AdapterOnly = "adapter"
    dp: Annotated[Guarantee | None, Field(exclude_if=lambda dp: dp is None)] = None
    offer_digest: Annotated[Sha256 | None, Field(exclude_if=lambda value: value is None)] = None


Kind = TypeVar("Kind", OfferManifest, DeltaManifest)


def new_id() -> str:
    """A random exchange id: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def now() -> datetime:
    """The present time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def check_clock(made: datetime, expires: datetime | None) -> None:
    """Refuse to check an expiry with a clock that is a day or more before the offer was made.

    Raises:
        OffsiteError: with both times; never for an offer that does not expire.
    """
    if expires is not None and now() < made - timedelta(days=1):
        raise OffsiteError(
            f"The clock of this machine says {now().isoformat()}, but the offer was made at "
            f"{made.isoformat()}; set the clock, because the offer expires."
        )


def tool_versions() -> dict[str, str]:
    """Versions of the packages that made a folder."""
    versions = {}
    for package in ("offsite", "torch", "transformers", "peft", "safetensors"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


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
        raise OffsiteError(
            f"'{folder}' has no {MANIFEST}, so it is not an offsite folder; name an offer or a "
            "delta."
        )
    data = read_json(folder / MANIFEST)
    check_kind(data, kind.model_fields["kind"].default, folder)
    manifest: Kind = validate(kind, data, folder / MANIFEST)
    check_names(folder, manifest.files)
    check_files(folder, sizes, manifest.files)
    return manifest


def read_either(folder: str | Path) -> OfferManifest | DeltaManifest:
    """The checked manifest of an offer or a delta, whichever it is.

    Raises:
        OffsiteError: neither, or a folder that was changed.
    """
    path = Path(folder) / MANIFEST
    if says_delta(read_json(path) if path.is_file() else None):
        return read_manifest(folder, DeltaManifest)
    return read_manifest(folder, OfferManifest)


def says_delta(data: Any) -> bool:
    """Whether the unchecked JSON of a manifest says that it is that of a delta."""
    return isinstance(data, dict) and data.get("kind") == "delta"


def check_kind(data: Any, kind: str, folder: Path) -> None:
    """Refuse another kind of folder or a schema version this package does not know."""
    found = data.get("kind") if isinstance(data, dict) else None
    if found != kind:
        what = f"is a folder of kind '{shown(found)}'" if found else "has no manifest"
        raise OffsiteError(
            f"'{folder}' {what}, but {'an offer' if kind == 'offer' else f'a {kind}'} is needed "
            "here; name another folder."
        )
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise OffsiteError(
            f"'{folder}' has schema version {shown(version)}; this offsite "
            f"reads version {SCHEMA_VERSION}, so use a matching release."
        )
