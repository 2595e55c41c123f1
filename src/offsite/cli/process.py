"""The process of a command: open streams, a current folder, signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from offsite.errors import OffsiteError


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: it ends a command as Ctrl-C does.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def prepare() -> None:
    """Open what is closed of the standard streams, and let them show any character.

    A closed stream is read and written as ``/dev/null``; otherwise the next file that is opened
    would take its number, and what a library prints would land in that file. A character that an
    output cannot encode is shown as an escape.

    Raises:
        OffsiteError: the current folder was removed, or the umask denies the user their own files.
    """
    os.umask(mask := os.umask(0o077))
    if mask & 0o700:
        raise OffsiteError(
            f"The umask {mask:04o} denies you the files that you create; run 'umask 0022' and then "
            "the command again."
        )
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for shown in (sys.stdout, sys.stderr):
        if isinstance(shown, TextIOWrapper):
            shown.reconfigure(errors="backslashreplace")
    try:
        Path.cwd()
    except OSError as error:
        raise OffsiteError(
            "The current folder was removed or cannot be read; change to another folder and run "
            "the command again."
        ) from error


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise :class:`Stopped` in this process.

    A signal that is ignored, as ``nohup`` has it, stays ignored.
    """
    owner, previous = os.getpid(), dict[int, Any]()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Stopped(number)
        signal.signal(number, signal.SIG_DFL)  # a process that was forked from this one
        os.kill(os.getpid(), number)

    if current_thread() is main_thread():
        for caught in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(caught) is signal.SIG_DFL:
                previous[caught] = signal.signal(caught, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interruption(end: SystemExit) -> KeyboardInterrupt | None:
    """The Ctrl-C or signal that typer turned into an exit without a word, if it was one."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error if end.code == 128 + signal.SIGINT else None
