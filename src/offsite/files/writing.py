"""Write files and folders: each appears complete, under its name, or not at all.

Everything is written aside, flushed to the disk and renamed. What a killed process left aside is
removed by the next one that writes the same target.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from offsite.errors import OffsiteError
from offsite.files.swap import swap

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = (
    "os error 28", "os error 27", "os error 122",  # safetensors and tokenizers
    "PytorchStreamWriter failed", "unexpected pos", "iostream error",  # torch, after a short write
)  # fmt: skip


@contextmanager
def new_folder(
    target: str | Path,
    *,
    overwrite: bool = False,
    around: AbstractContextManager[object] | None = None,
) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` in one rename if the block succeeds.

    Its files are on the disk before the rename, with the modes that the umask gives. On any
    exception (a full disk, Ctrl-C) the partial folder is removed and ``target`` is as it was.

    Args:
        target: the folder to make.
        overwrite: exchange a folder that is there already for the new one, in one step.
        around: entered just before the rename and left just after it.

    Raises:
        OffsiteError: ``target`` exists already and ``overwrite`` is false, or cannot be written.
    """
    target = Path(target)
    check_free(target, overwrite=overwrite)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        partial = temporary_path(target)
        partial.mkdir()
        mode = stat.S_IMODE(partial.stat().st_mode)  # what the umask leaves of 0777
        partial.chmod(0o700)
        with _held(partial):
            try:
                yield partial
                for file in partial.iterdir():
                    file.chmod(mode & 0o666)  # safetensors writes 0600, and the folder is sent
                    sync(file)
                partial.chmod(mode)
                sync(partial)
                with around or nullcontext():
                    if overwrite and os.path.lexists(target):
                        swap(partial, target)
                    else:
                        os.rename(partial, target)
                    sync(target.parent)
            finally:  # after an exchange the old folder has this name
                shutil.rmtree(partial, ignore_errors=True)


def write_file(
    target: str | Path, text: str, *, private: bool = False, beside: Path | None = None
) -> None:
    """Write ``text`` to ``target`` by way of a temporary file and one rename.

    Args:
        target: the file to write; its folder is made where it is missing.
        text: what to write, in UTF-8.
        private: only the present user may read it; otherwise the umask decides.
        beside: where it is written before it is renamed, by default beside ``target``; for a file
            in a folder that may hold nothing else, that folder.

    Raises:
        OffsiteError: it cannot be written; a file that was there before is untouched.
    """
    with new_file(target, private=private, beside=beside) as file:
        file.write(text.encode())


@contextmanager
def new_file(
    target: str | Path, *, private: bool = False, beside: Path | None = None
) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``target`` in one rename if the block succeeds.

    Its options are those of :func:`write_file`.

    Raises:
        OffsiteError: it cannot be written; a file that was there before is untouched.
    """
    target = Path(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(beside or target)
        partial = temporary_path(beside or target)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        handle = os.open(partial, flags, 0o600 if private else 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                _lock(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.rename(partial, target)
            sync(target.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def temporary_path(target: Path) -> Path:
    """A fresh name beside ``target`` that says which process writes there."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def remove_leftovers(target: Path) -> None:
    """Remove what processes that are gone left aside while they wrote ``target``.

    A live process is known by its number, and by its lock where the number is another container's.
    """
    ours = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-[0-9a-f]{{8}}\.(partial|kept)")
    with suppress(OSError):
        for path in target.parent.iterdir():
            if not (found := ours.fullmatch(path.name)) or _alive(int(found[1])):
                continue
            with suppress(OSError), _opened(path, os.O_NOFOLLOW) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if found[2] == "kept" and not os.path.lexists(target):
                    os.rename(path, target)  # killed between the two renames of an exchange
                elif path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """A lock on ``path`` that says it is in use, for as long as this process lives."""
    with _opened(path) as handle:
        _lock(handle)
        yield


@contextmanager
def _opened(path: Path, more: int = 0) -> Iterator[int]:
    """A file or folder opened to be locked or flushed; ``more`` are further flags."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | more)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    with suppress(OSError):  # a file system without locks: as good as it can be there
        fcntl.flock(handle, fcntl.LOCK_EX)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk.

    Raises:
        OSError: the disk is full or fails; a folder that cannot be flushed is left to the system.
    """
    with _opened(path) as handle:
        try:
            os.fsync(handle)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the system says while writing ``target`` (disk full, no rights) into one error.

    Raises:
        OffsiteError: the block raised ``OSError``, or what a library raises in its place.
    """
    try:
        yield
    except Exception as error:
        number, full = getattr(error, "errno", None), disk_full(error)
        if not full and not isinstance(error, (OSError, SafetensorError)):
            raise
        reason = "the disk is full" if full else os.strerror(number) if number else "writing failed"
        raise OffsiteError(
            f"Cannot write '{target}': {reason}; nothing was left behind, so "
            f"{'free some space' if full else 'name another path'} and run it again."
        ) from error


def disk_full(error: BaseException) -> bool:
    """Whether an exception, or the one it was raised for, says that the disk is full.

    safetensors, tokenizers and torch raise exceptions of their own for it.
    """
    number, before = getattr(error, "errno", None), error.__cause__ or error.__context__
    told = number in FULL or any(words in str(error) for words in FULL_WORDS)
    return told or (before is not None and disk_full(before))


def check_free(target: str | Path, *, overwrite: bool = False) -> None:
    """Refuse an output path that exists, before any work is done for it.

    An output inside an offer or a delta is refused too: those folders hold what their manifest
    lists and nothing else, and nobody could read them any more.
    """
    if os.path.lexists(target) and not overwrite:
        raise OffsiteError(f"The output '{target}' exists already; name another path or remove it.")
    folder = Path(target).absolute().parent
    if (folder / "manifest.json").is_file() and any(folder.glob("*.safetensors")):
        raise OffsiteError(
            f"The output '{target}' lies inside an offer or a delta, which may hold nothing else; "
            "name a path outside of it."
        )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, as long as the block or the process lives.

    Raises:
        OffsiteError: another process holds it.
    """
    with _opened(folder) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OffsiteError(
                f"Another process is at work in '{folder}'; wait until it has ended, or name "
                "another output."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


@contextmanager
def locked(target: str | Path) -> Iterator[None]:
    """Let one process at a time change ``target``; others wait. Leaves no lock file behind."""
    folder = Path(target).parent
    with ExitStack() as stack:
        with writing(Path(target)):
            folder.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(_opened(folder))
        _lock(handle)
        yield
