"""Read files of somebody else: strict JSON, regular files, flat folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError

MAX_JSON_BYTES = 16 * 1024 * 1024
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS did not fetch
MAX_FILES = 4096
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")  # of a flat folder
SPARSE_FROM = 64 * 1024 * 1024  # below this many bytes a file with holes costs nothing to read


def is_pointer(path: str | Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that was not fetched."""
    with open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER


def shown(text: object) -> str:
    """A name from somebody else as a message may show it: short, and no control characters."""
    plain = ascii(str(text))[1:-1]
    return plain if len(plain) <= 80 else plain[:77] + "..."


def reason(error: BaseException) -> str:
    """What a library says went wrong, as a clause of one line and at most 240 characters."""
    text = ascii(" ".join(str(error).split()))[1:-1].rstrip(".")
    if isinstance(error, KeyError):
        return f"there is nothing named {text}"
    return (text if len(text) <= 240 else f"{text[:237]}...") or type(error).__name__


def read_json(path: str | Path) -> Any:
    """Parse one JSON file; duplicate keys, NaN, infinities and files over 16 MiB are refused.

    Raises:
        OffsiteError: the file is missing, too large or not strict JSON.
    """
    path = Path(path)
    if path.is_dir():
        raise OffsiteError(f"'{path}' is a folder, but a JSON file is needed here; name the file.")
    if not path.is_file():
        raise OffsiteError(f"There is no file '{path}'; check the path.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise OffsiteError(f"'{path}' cannot be read: {error.strerror}.") from error
    if len(data) > MAX_JSON_BYTES:
        raise OffsiteError(
            f"'{path}' is larger than the {MAX_JSON_BYTES} bytes allowed for JSON; shorten it."
        )
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> Any:
    """Strict JSON from bytes in UTF-8; ``path`` is for messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise OffsiteError(f"'{path}' has the same key twice in one object; keep one.")
        return dict(pairs)

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise OffsiteError(
                f"'{path}' has the number {text[:20]}, which is not finite; write another."
            )
        return value

    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=number,
            parse_float=number,
        )
    except OffsiteError:
        raise
    except (ValueError, RecursionError) as error:
        why = "is not valid JSON; it may be damaged or truncated"
        if data.startswith(POINTER):
            why = "is a Git LFS pointer and not the file; run 'git lfs pull'"
        raise OffsiteError(f"'{path}' {why}.") from error


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading; a link or a special file put in its place is refused.

    Raises:
        OffsiteError: missing, unreadable, or no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OffsiteError(f"'{path}' cannot be read as a regular file.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OffsiteError(f"'{path}' cannot be read as a regular file.")
    return open(handle, "rb")


def is_sparse(path: str | Path) -> bool:
    """Whether a large file takes far less room on the disk than it claims, as a trap does."""
    found = Path(path).stat()
    return found.st_size > SPARSE_FROM and found.st_blocks * 512 < found.st_size // 16


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: str | Path) -> dict[str, int]:
    """Name and size of every file of a flat folder.

    Raises:
        OffsiteError: the folder is missing, or holds a link, a sub-folder, a special file or more
            than 4096 files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OffsiteError(f"There is no folder '{folder}'; check the path.")
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or not entry.is_file():
                raise OffsiteError(
                    f"'{folder}' holds '{shown(entry.name)}', which is not a regular file; "
                    "an offer or a delta is a flat folder of regular files."
                )
            sizes[entry.name] = entry.stat().st_size
            if len(sizes) > MAX_FILES:
                raise OffsiteError(
                    f"'{folder}' holds more than the {MAX_FILES} files allowed in one exchange; "
                    "send fewer."
                )
    return dict(sorted(sizes.items()))
