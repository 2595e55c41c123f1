"""What a recipe is said to take: its rows, its tokens, and the time of a measured pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from offsite.compress import Align, Drop, Prune
from offsite.compress import forecast as module
from offsite.compress.forecast import forecast, span
from tests.support.context import world


def test_each_step_that_reads_data_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_of", lambda model, batch: 2.0)
    context, state = world("llama"), torch.get_rng_state()
    length = len(next(iter(context.data or ()))["input_ids"])
    recipe: list[Any] = [
        Drop(keep=2, by="influence"),
        Prune(keep=0.5),
        Drop(keep=1, by="leave_one_out"),
        Align(steps=10, batch_size=4),
    ]
    assert forecast(recipe, context) == [
        f"drop: 128 rows of data, at most {128 * length:,} tokens, about 4 min on this machine",
        f"drop: 128 rows of data, at most {128 * length:,} tokens, about 26 min on this machine",
        f"align: 40 rows of data, at most {40 * length:,} tokens, about 5 min on this machine",
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert forecast([Prune(keep=0.5)], context) == []
    assert forecast(recipe, replace(context, data=None)) == []


def test_a_length_of_time_in_words() -> None:
    assert [span(s) for s in (0.01, 40, 720, 9000)] == ["1 s", "40 s", "12 min", "2.5 h"]
