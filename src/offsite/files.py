"""Reading and writing files so that nothing is ever half there, and nothing hostile is parsed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from offsite.errors import OffsiteError

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_FILES = 4096


def shown(text: object) -> str:
    """A name from somebody else as a message may show it: short, and no control characters."""
    plain = ascii(str(text))[1:-1]
    return plain if len(plain) <= 80 else plain[:77] + "..."


@contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` in one rename if the block succeeds.

    On any exception (a full disk, Ctrl-C) the partial folder is removed, ``target`` as it was.

    Raises:
        OffsiteError: ``target`` exists already and ``overwrite`` is false, or cannot be written.
    """
    target = Path(target)
    check_free(target, overwrite=overwrite)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield partial
            for file in partial.iterdir():
                file.chmod(0o644)  # safetensors writes 0600, and the folder is to be sent
            partial.chmod(0o755)
            if overwrite and os.path.lexists(target):
                _swap(partial, target)
            else:
                os.rename(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _swap(partial: Path, target: Path) -> None:
    """Put ``partial`` in the place of an existing ``target``, which goes only after that worked."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        os.rename(target, aside / target.name)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(aside / target.name, target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the system says while writing ``target`` (disk full, no rights) into one error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in str(error)
        full = full or "os error 27" in str(error)
        reason = "the disk is full" if full else os.strerror(number) if number else "writing failed"
        raise OffsiteError(
            f"Cannot write '{target}': {reason}; nothing was left behind, so "
            f"{'free some space' if full else 'name another path'} and run it again."
        ) from error


def check_free(target: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output path that exists, before any work is done for it."""
    if os.path.lexists(target) and not overwrite:
        raise OffsiteError(f"The output '{target}' exists already; name another path or remove it.")


def write_file(target: str | Path, text: str, *, private: bool = False) -> None:
    """Write ``text`` to ``target`` by way of a temporary file and one rename.

    Args:
        private: only the present user may read it.

    Raises:
        OffsiteError: it cannot be written; a file that was there before is untouched.
    """
    target = Path(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o600 if private else 0o644)
            os.rename(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def locked(target: str | Path) -> Iterator[None]:
    """Let one process at a time change ``target``; others wait. Leaves no lock file behind."""
    folder = Path(target).parent
    with writing(Path(target)):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: as good as it can be there
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_json(path: str | Path) -> Any:
    """Parse one JSON file; duplicate keys, NaN, infinities and files over 16 MiB are refused.

    Raises:
        OffsiteError: the file is missing, too large or not strict JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise OffsiteError(f"There is no file '{path}'.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise OffsiteError(f"'{path}' cannot be read: {error.strerror}.") from error
    if len(data) > MAX_JSON_BYTES:
        raise OffsiteError(f"'{path}' is larger than the {MAX_JSON_BYTES} bytes allowed for JSON.")
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> Any:
    """Strict JSON from bytes in UTF-8; ``path`` is for messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise OffsiteError(f"'{path}' has the same key twice in one object, which is refused.")
        return dict(pairs)

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise OffsiteError(f"'{path}' contains a number that is not finite, which is refused.")
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
        raise OffsiteError(
            f"'{path}' is not valid JSON; it may be damaged or truncated."
        ) from error


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
        raise OffsiteError(f"There is no folder '{folder}'.")
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
                    f"'{folder}' holds more than the {MAX_FILES} files allowed in one exchange."
                )
    return dict(sorted(sizes.items()))
