"""Reading and writing files so that nothing is ever half there, and nothing hostile is parsed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError

MAX_JSON_BYTES = 16 * 1024 * 1024


@contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` in one rename if the block succeeds.

    On any exception (a full disk, Ctrl-C) the partial folder is removed and ``target`` is as it was.

    Raises:
        OffsiteError: ``target`` exists already and ``overwrite`` is false.
    """
    target = Path(target)
    check_free(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if overwrite and target.exists():
            shutil.rmtree(target)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free(target: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output path that exists, before any work is done for it."""
    if Path(target).exists() and not overwrite:
        raise OffsiteError(f"The output '{target}' exists already; name another path or remove it.")


def write_file(target: str | Path, text: str) -> None:
    """Write ``text`` to ``target`` by way of a temporary file and one rename."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.rename(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> Any:
    """Parse one JSON file; duplicate keys, NaN and files over 16 MiB are refused.

    Raises:
        OffsiteError: the file is missing, too large or not strict JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise OffsiteError(f"There is no file '{path}'.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise OffsiteError(f"'{path}' is larger than the {MAX_JSON_BYTES} bytes allowed for JSON.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise OffsiteError(f"'{path}' has the same key twice in one object, which is refused.")
        return dict(pairs)

    def constant(name: str) -> None:
        raise OffsiteError(f"'{path}' contains {name}, which is not JSON.")

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except OffsiteError:
        raise
    except (ValueError, RecursionError) as error:
        raise OffsiteError(
            f"'{path}' is not valid JSON; it may be damaged or truncated."
        ) from error


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: str | Path) -> dict[str, int]:
    """Name and size of every file of a flat folder.

    Raises:
        OffsiteError: the folder is missing, or holds a link, a sub-folder or a special file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OffsiteError(f"There is no folder '{folder}'.")
    sizes = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_symlink() or not entry.is_file():
            raise OffsiteError(
                f"'{folder}' holds '{entry.name}', which is not a regular file; "
                "an offer or a delta is a flat folder of regular files."
            )
        sizes[entry.name] = entry.stat().st_size
    return sizes
