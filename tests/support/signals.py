"""Signals that arrive at a chosen moment, also where the tests themselves run in the background."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def handled(number: signal.Signals) -> Iterator[None]:
    """Handle a signal as a process in the foreground does.

    A shell lets the processes that it starts in the background ignore SIGINT.
    """
    first = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, first)
    try:
        yield
    finally:
        signal.signal(number, before)


class Interrupt:
    """Sends this process a signal while a method runs: ``interrupt(CausalText, "loss", call=7)``.

    The methods are whole again at the end of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(
        self, owner: type, method: str, call: int, number: signal.Signals = signal.SIGINT
    ) -> None:
        calls, original = [], getattr(owner, method)

        def interrupted(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return original(*args, **options)

        self.monkeypatch.setattr(owner, method, interrupted)
