"""``offsite offer --try``: parts that do not overlap, a recommendation that can be typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from offsite.errors import OffsiteError
from offsite.lab.trial import Tried, advice, parts, recommend
from tests.support import Run


def tried(name: str, gain: float | None, margin: float | None) -> Tried:
    return Tried(name, 0.5, 0.5, 5.0, 4.0, 4.0, gain, margin)


def test_the_largest_margin_among_recipes_that_gain_enough() -> None:
    weak, strong, safe = tried("a", 0.1, 0.9), tried("b", 1.0, 0.1), tried("c", 0.6, 0.3)
    lost = tried("d", None, None)
    assert recommend([weak, strong, safe, lost]) is safe
    assert recommend([tried("a", -0.1, 0.9), lost]) is None
    assert "No recipe made the plugged-in model better" in advice([weak], None)
    assert "margin is not above 0" in advice([strong], tried("b", 1.0, -0.1))
    assert "margin is not above 0" not in advice([safe], safe)


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


def test_a_trial_writes_no_offer_and_goes_on_where_it_stopped(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    words: tuple[object, ...]
    words = ("offer", model_folder("llama"), "--out", tmp_path / "o", "--adapter", "ends:1,1")
    words += ("--try", "--try-steps", 2, "--data", text_file, "--max-length", 16, "--json")
    status, out, err = run(*words)
    assert status == 0, err
    assert "Trying 4 recipes: 12 runs of 2 steps, 1,536 tokens, about" in err
    found = json.loads(out)
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
