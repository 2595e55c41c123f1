"""What a recipe is said to take: its rows, its tokens, and the time of a measured pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from offsite.compress import Align, Drop, GradOT, Prune, Rank
from offsite.compress import forecast as module
from offsite.compress.forecast import (
    decomposed,
    decomposing,
    forecast,
    passes_of,
    rows_of,
    span,
)
from tests.support.context import world


def test_each_step_that_reads_data_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_of", lambda model, batch: 2.0)
    context, state = world("llama"), torch.get_rng_state()
    length = len(next(iter(context.data or ()))["input_ids"])
    count = len(context.data)  # type: ignore[arg-type]
    assert count < 128  # a row is not looked at twice to choose blocks
    recipe: list[Any] = [
        Drop(keep=2, by="influence"),
        Prune(keep=0.5),
        Drop(keep=1, by="leave_one_out"),
        Align(steps=10, batch_size=4),
    ]
    assert forecast(recipe, context) == [
        f"drop: {count} rows of data, at most {count * length:,} tokens, about {span(2 * count)} "
        "on this machine",
        f"drop: {count} rows of data, at most {count * length:,} tokens, about {span(12 * count)} "
        "on this machine",
        f"align: 40 rows of data, at most {40 * length:,} tokens, about 5 min on this machine",
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert forecast([Prune(keep=0.5)], context) == []
    assert forecast(recipe, replace(context, data=None)) == []


def test_matrices_to_decompose_are_counted_with_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "seconds_of", lambda model, batch: 2.0)
    context = world("llama")
    count = len(context.split.middle)
    shapes = decomposed(Rank(beta=0.5), context.model, context.split.middle)
    assert len(shapes) == 4 * count  # query, key, value and output of each block
    assert (
        len(decomposed(Rank(beta=0.5, layers="all"), context.model, context.split.middle))
        == 7 * count
    )
    assert decomposed(Rank(beta=0.0), context.model, context.split.middle) == []
    (line,) = forecast([Rank(beta=0.5)], replace(context, data=None))
    assert line.startswith(f"rank: at most {4 * count} matrices to decompose, about ")
    monkeypatch.setattr(module, "decomposing", lambda shapes, device: 7200.0)
    (line,) = forecast([GradOT(batches=1)], context)
    assert line.endswith(f"at most {4 * count} matrices to decompose, about 2.0 h on this machine")


def test_decomposing_grows_with_the_cube_of_the_side() -> None:
    cpu = torch.device("cpu")
    one, many = decomposing([(256, 256)], cpu), decomposing([(2048, 2048)] * 2, cpu)
    assert 100 < many / one < 10_000  # 1,024 times, by a clock that others share


def test_a_step_that_chooses_blocks_looks_at_small_data_once() -> None:
    needs = Drop(keep=2, by="leave_one_out").needs
    assert [rows_of(needs, range(count)) for count in (10, 128, 500)] == [10, 128, 128]
    assert passes_of(needs, range(10), 6) == 60
    assert rows_of(Align(steps=10, batch_size=4).needs, range(10)) == 40


def test_a_length_of_time_in_words() -> None:
    assert [span(s) for s in (0.01, 40, 720, 9000)] == ["1 s", "40 s", "12 min", "2.5 h"]
