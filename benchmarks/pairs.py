"""Times of two ways to do the same, taken one after the other in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Times = tuple[float, float]  # seconds by the clock, and those that the process computed


def timed(run: Callable[[], T]) -> tuple[Times, T]:
    """How long a run took, and what came of it. A busy machine changes the second time less."""
    clock, computed = time.perf_counter(), time.process_time()
    result = run()
    return (time.perf_counter() - clock, time.process_time() - computed), result


def times_as_fast(own: Sequence[Times], other: Sequence[Times]) -> list[list[float]]:
    """How many times as fast the own way was in each pair: by the clock, and by the process."""
    return [[b[i] / a[i] for a, b in zip(own, other, strict=True)] for i in (0, 1)]
