"""Exchange two folders in one step, so that a kill never leaves a name without a folder."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2


def swap(new: Path, old: Path) -> None:
    """Give ``new`` the name of ``old`` and ``old`` the name of ``new``.

    Where the system or the file system has no such call, two renames do it; a kill between them
    leaves the old folder as ``.NAME....kept``, which the next writer of that name puts back.

    Raises:
        OSError: neither worked; both are as they were.
    """
    if _exchanged(os.fsencode(new), os.fsencode(old)):
        return
    kept = new.with_suffix(".kept")
    os.rename(old, kept)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(kept, old)
        raise
    os.rename(kept, new)


def _exchanged(first: bytes, second: bytes) -> bool:
    """Ask the C library of Linux or macOS; False where it cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        call = library.renameat2(AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE)
    elif hasattr(library, "renamex_np"):
        call = library.renamex_np(first, second, RENAME_SWAP)
    else:
        return False
    return bool(call == 0)
