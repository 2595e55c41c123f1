"""Progress bars on standard error; results alone go to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def track(items: Iterable[Any], text: str, total: int | None = None) -> Any:
    """Iterate with a bar on standard error; silent when that is not a terminal."""
    return tqdm(items, desc=text, total=total, disable=None, leave=False)


def say(text: str) -> None:
    """One line on standard error that leaves the bars whole."""
    tqdm.write(text, file=sys.stderr)


def counter(total: int, text: str) -> Any:
    """A bar on standard error to update by hand; silent when that is not a terminal."""
    return tqdm(total=total, desc=text, disable=None)
