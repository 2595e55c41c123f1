"""The files of a folder as its manifest lists them: names, sizes and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from offsite.errors import OffsiteError
from offsite.files import FILE_NAME, folder_files, is_sparse, open_regular, sha256_file, shown
from offsite.signing.oms import SIGNATURE

MANIFEST, README = "manifest.json", "README.md"
MAX_SIDE_BYTES = 256 * 1024 * 1024
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**62)]


class FileEntry(BaseModel):
    """One file of the folder: bytes and SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: Count
    sha256: Sha256


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Entries for every file of a folder but the manifest and a signature."""
    return {
        name: FileEntry(size=size, sha256=sha256_file(folder / name))
        for name, size in folder_files(folder).items()
        if name not in (MANIFEST, SIGNATURE)
    }


def check_names(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Refuse file names that could leave the folder or be mistaken for another."""
    for name in files:
        if not FILE_NAME.fullmatch(name) or name in (MANIFEST, SIGNATURE):
            raise OffsiteError(
                f"The manifest of '{folder}' names the file '{shown(name)}'; a name has letters, "
                "digits, '.', '_' and '-' only, and no folder, so ask for a copy with other names."
            )
    if len({name.lower() for name in files}) < len(files):
        raise OffsiteError(
            f"Two file names in '{folder}' differ only in upper and lower case, which some disks "
            "cannot hold; ask for a copy with other names."
        )


def copy_verified(folder: Path, files: Mapping[str, FileEntry], target: Path) -> None:
    """Copy files into ``target`` from single reads whose bytes have the size and hash declared.

    Raises:
        OffsiteError: more than 256 MiB in all, or a file that changed since the manifest was read.
    """
    if sum(entry.size for entry in files.values()) > MAX_SIDE_BYTES:
        raise OffsiteError(
            f"The files of '{folder}' besides the weights have more than {MAX_SIDE_BYTES} bytes; "
            "ask for a copy with smaller ones."
        )
    for name, entry in files.items():
        with open_regular(folder / name) as file:
            data = file.read(entry.size + 1)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise OffsiteError(
                f"'{folder / name}' was changed while it was read; "
                "try again, or ask for a fresh copy."
            )
        (target / name).write_bytes(data)


def check_files(folder: Path, sizes: Mapping[str, int], files: Mapping[str, FileEntry]) -> None:
    """Compare the files on disk with the manifest: the set, then sizes, then hashes."""
    present = set(sizes) - {MANIFEST, SIGNATURE}
    if odd := sorted(present ^ set(files)):
        state = "is missing" if odd[0] in files else "is not in the manifest"
        raise OffsiteError(
            f"The file '{shown(odd[0])}' of '{folder}' {state}; the folder was changed, so ask for "
            "a fresh copy."
        )
    for name, entry in files.items():
        if sizes[name] != entry.size:
            raise OffsiteError(
                f"The file '{name}' of '{folder}' has {sizes[name]} bytes instead of {entry.size}; "
                "it is truncated or was changed, so ask for a fresh copy."
            )
    for name in files:
        if is_sparse(folder / name):
            raise OffsiteError(
                f"The file '{name}' of '{folder}' is sparse (almost all holes) and is not read; "
                "ask for a fresh copy."
            )
    for name, entry in files.items():
        if sha256_file(folder / name) != entry.sha256:
            raise OffsiteError(
                f"The file '{name}' of '{folder}' does not have the SHA-256 of the manifest; "
                "it was changed, so ask for a fresh copy."
            )
