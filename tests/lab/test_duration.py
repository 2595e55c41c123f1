"""How long a lab takes is said before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offsite.compress import Rank
from offsite.compress.recipe import Recipe
from offsite.deltas import method_json
from offsite.errors import OffsiteError
from offsite.lab import duration
from offsite.lab.cells import Cell, plan_cells
from offsite.lab.duration import rows_passed, seconds
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.lab.results import run_plans
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import ends
from offsite.tasks.data import TaskData
from offsite.training.options import TrainOptions


def test_what_is_missing_is_said_with_its_time(
    model_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(model_folder("llama"))
    checkpoint = Checkpoint.of(model, "AutoModelForCausalLM")
    half = Recipe.parse("uniform@0.5", checkpoint, ends(1, 1))
    plan = Plan(
        model=model, data=str(text_file), eval_data=str(text_file), max_length=16,
        recipes={"half": half},
        deltas={"lora": method_json("lora")}, options=TrainOptions(steps=2, batch_size=2),
        full_lr=(1e-4, 1e-3),
    )  # fmt: skip
    lab = Lab(plan, tmp_path, "cpu")
    cells = plan_cells(plan)
    found = seconds(lab, cells)
    assert found.keys() == cells.keys() and all(value > 0 for value in found.values())
    full = Cell("full_tuned", lr=1e-4)
    rows = len(lab.setting.rows(lab.setting.data.evaluation, lab.setting.loaded))
    assert rows_passed(lab, full, rows) == rows + 3 * 2 * 2  # two steps of two rows, three passes
    longer = Lab(replace(plan, options=TrainOptions(epochs=2.0, batch_size=2)), tmp_path, "cpu")
    read = len(longer.setting.private_rows(longer.setting.loaded))
    assert 0 <= rows_passed(longer, full, rows) - (rows + 3 * 2 * read) <= 3 * 2 * 2
    said: list[str] = []
    done, _ = run_plans([plan], tmp_path / "out", "cpu", say=said.append)
    assert said[0].startswith("7 cells to compute, about ") and said[0].endswith("this machine")
    again: list[str] = []
    run_plans([plan], tmp_path / "out", "cpu", say=again.append)
    assert again == said[1:]
    monkeypatch.delattr(TaskData, "check")  # what computes nothing reads no data
    assert run_plans([plan], tmp_path / "out", "cpu", cached=True)[0] == done
    with pytest.raises(OffsiteError, match="There is no data file"):
        run_plans([replace(plan, data="none.txt")], tmp_path / "out", "cpu", cached=True)


def test_matrices_to_decompose_count(
    model_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the forecast of ``offer`` counts them; 4 matrices in each of 6 blocks."""
    model = str(model_folder("llama"))
    ranks = Recipe((Rank(beta=0.5),), ends(1, 1))
    plan = Plan(
        model=model, data=str(text_file), eval_data=str(text_file), max_length=16,
        recipes={"rank": ranks}, deltas={"lora": method_json("lora")},
    )  # fmt: skip
    monkeypatch.setattr(duration, "decomposing", lambda shapes, device: 100.0 * len(shapes))
    found = duration.seconds(Lab(plan, tmp_path, "cpu"), plan_cells(plan))
    assert {cell.stage for cell, value in found.items() if value > 2400} == {"offer"}
