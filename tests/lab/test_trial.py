"""``offsite offer --try``: parts that do not overlap, a recommendation that can be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from offsite.errors import OffsiteError
from offsite.lab.dividing import LENGTH, SCORED, parts
from offsite.lab.trial import Tried, advice, progress, recommend
from tests.support import Run


def tried(name: str, size: float, gain: float | None, margin: float | None = 0.5) -> Tried:
    return Tried(name, size, 0.5, 5.0, 4.0, 4.0, gain, margin)


def test_the_best_gain_of_the_smallest_size_that_is_worth_it() -> None:
    """The rows of SmolLM2-135M in the owner's tutorial; margins of a short trial do not rank."""
    rows = [
        tried("uniform@0.5", 0.66, 0.046, 1.721),
        tried("influence@0.5", 0.66, 0.064, 0.715),
        tried("influence-align@0.5", 0.66, 0.105, 0.621),
        tried("influence-align@0.3", 0.53, 0.088, 1.095),
        tried("lost", 0.1, None, None),
    ]
    assert recommend(rows) is rows[3]
    said = advice(rows, rows[3])
    assert "Of the recipes that ship about 53% of the model's bytes it gains the most" in said
    assert "Larger offers gain up to 0.105" in said
    assert "measure the margin with 'offsite lab'" in said and "not above 0" not in said
    assert recommend(rows[:3]) is rows[2]
    poor = [*rows[:3], tried("small", 0.3, 0.01)]
    assert recommend(poor) is rows[2]
    assert "Smaller offers gain less than 75% of that" in advice(poor, rows[2])


def test_a_trial_that_gains_nothing_recommends_nothing() -> None:
    rows = [tried("a", 0.5, -0.1), tried("lost", 0.3, None, None)]
    assert recommend(rows) is None
    assert "No recipe made the plugged-in model better" in advice(rows, None)
    lost = tried("b", 0.5, 1.0, -0.1)
    assert "margin is not above 0" in advice([lost], lost)


def test_parts_of_a_text_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(f"word{i}" for i in range(1000)))
    files = parts(f"{tmp_path}/a.txt", None, tmp_path, 500)
    found = [set(Path(path).read_text().split()) for path in files]
    assert all(len(words) > 100 for words in found)
    assert not found[0] & found[1] and not found[1] & found[2] and not found[0] & found[2]


def test_other_data_needs_examples_to_score_on(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(OffsiteError, match="cannot be divided into parts; give --eval-data"):
        parts(f"{tmp_path}/rows.csv", None, tmp_path, 500)
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(OffsiteError, match="too short to be divided"):
        parts(f"{tmp_path}/one.jsonl", None, tmp_path, 500)


def test_a_trial_takes_no_more_of_the_data_than_it_uses(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 100_000)
    (tmp_path / "test.txt").write_text("other " * 100_000)
    (tmp_path / "a.jsonl").write_text('{"text": "a line of some words"}\n' * 10_000)
    for name, given in (("a.txt", None), ("a.txt", f"{tmp_path}/test.txt"), ("a.jsonl", None)):
        *tuned, scored = parts(f"{tmp_path}/{name}", given, tmp_path, 500)
        assert all(2400 < Path(file).stat().st_size < 2600 for file in tuned), (name, given)
        assert Path(scored).stat().st_size == pytest.approx(5 * SCORED * LENGTH, abs=50)
        assert (given is not None) == Path(scored).read_text().startswith("other")


def test_the_time_left_follows_the_speed_of_what_is_done() -> None:
    seconds = {"a": 10.0, "b": 20.0, "c": 30.0}
    done = [tried("a", 1.0, 0.1)]
    assert progress(done, seconds, 4.0) == "done  1 of 3: a, about 20 s left"
    done += [tried("b", 1.0, 0.1)]
    assert progress(done, seconds, 60.0) == "done  2 of 3: b, about 60 s left"
    done += [tried("c", 1.0, 0.1)]
    assert progress(done, seconds, 90.0) == "done  3 of 3: c"


def test_a_trial_writes_no_offer_and_goes_on_where_it_stopped(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    words: tuple[object, ...]
    words = ("offer", model_folder("llama"), "--out", tmp_path / "o", "--adapter", "ends:1,1")
    words += ("--try", "--try-steps", 2, "--data", text_file, "--max-length", 16, "--json")
    status, out, err = run(*words)
    assert status == 0, err
    assert "Trying 4 recipes: 8 runs of 2 steps on 4 rows of 16 tokens, about" in err
    assert "done  1 of 4: uniform@0.5, about" in err and "left" in err
    found = json.loads(out)
    assert "take 2 steps each on 4 rows of at most 16 tokens" in found["limits"]
    assert len(found["recipes"]) == 4 and not (tmp_path / "o").exists()
    sizes = [one["size"] for one in found["recipes"]]
    assert sizes[3] < sizes[0] and all(one["margin"] is not None for one in found["recipes"])
    if found["command"] is not None:
        assert shlex.split(found["command"])[:2] == ["offsite", "offer"]
    cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "o.try" / "cells").iterdir()}
    status, again, err = run(*words)
    assert status == 0 and json.loads(again) == found and "Trying" not in err
    assert cells == {p: p.stat().st_mtime_ns for p in (tmp_path / "o.try" / "cells").iterdir()}
    status, _, err = run(*words[:6], "--try")
    assert status == 2 and "give it with --data" in err
