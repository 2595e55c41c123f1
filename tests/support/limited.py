"""Run something in a process that may take little time and memory, as a hostile file deserves."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

SECONDS, MEMORY = 4, 200 * 2**20


def limited(action: Callable[[], object]) -> str:
    """What became of an action in a forked process with 4 s of processor time and 200 MB more.

    Returns:
        The text that it returned (``"done"`` for anything else), the name of the exception and its
        text, or ``"killed by signal N"``.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        spent = int(sum(os.times()[:2])) + 1
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, spent + SECONDS))
        try:
            result = action()
            told = result if isinstance(result, str) else "done"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return told or f"killed by signal {os.WTERMSIG(status)}"
