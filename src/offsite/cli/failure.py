"""How a command fails: one sentence on standard error, and exit status 2."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from offsite.errors import is_out_of_memory
from offsite.files import shown

DEBUG = "--debug"
PRINTERS = {"rich", "typer", "cli"}  # folders of code that writes to nothing but the screen
READING = f"{Path('offsite') / 'tasks'}{'/'}"  # an error from there may quote the private data


def debugging(words: list[str]) -> bool:
    """Whether ``--debug`` is among the words of a command; it is removed at any place."""
    wanted = DEBUG in words
    words[:] = [word for word in words if word != DEBUG]
    return wanted


def fail(message: str) -> NoReturn:
    """Say what is wrong and exit."""
    print(f"offsite: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def unable(error: OSError) -> str:
    """What could not be done, as a phrase that names the file or the standard output."""
    if error.filename:
        return f"read or write '{error.filename}'"
    frames = traceback.extract_tb(error.__traceback__)
    printed = frames and PRINTERS & {*Path(frames[-1].filename).parts}
    return "write to standard output" if printed else "read or write"


def unexpected(error: BaseException, words: Sequence[str]) -> str:
    """One sentence for an error that nobody foresaw: what it is, where it arose, on which files.

    Its text is left out where it arose while data was read, because it may quote the data.

    Args:
        words: those of the command line.
    """
    files = [f"'{word}'" for word in words if Path(word.partition(":")[0]).exists()]
    what = f" with {' and '.join(files)}" if files else ""
    if is_out_of_memory(error):
        return (
            f"There was not enough memory while working{what}. Give the process more, or use a "
            "smaller --batch-size, a smaller --max-length or a recipe that needs less."
        )
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    private = any(READING in frame.filename for frame in frames)
    cause = type(error).__name__ + (f" ({shown(text)})" if text and not private else "")
    place = ""
    if frames:
        parts = Path(frames[-1].filename).parts
        place = f" in {'/'.join(parts[-2:])}, line {frames[-1].lineno},"
    return (
        f"Stopped by an unexpected error{place} while working{what}: {cause}. Run the same command "
        f"with {DEBUG} to see where it arose; that may show parts of your data."
    )
