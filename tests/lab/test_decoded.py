"""Decoded deltas in the lab: rows of their own, from deltas that were tuned once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offsite.compress import Drop
from offsite.compress.recipe import Recipe
from offsite.errors import OffsiteError
from offsite.lab.experiment import decode_of
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.lab.results import run_plans
from offsite.model.split import ends
from offsite.owner.decode import Decode
from offsite.training.options import TrainOptions

HOW = Decode("sample", steps=3, batch_size=2, rank=2, max_length=32, samples=8, strength=1.0)


def make_plan(model: Path, text: Path, **changes: Any) -> Plan:
    text.write_text(text.read_text()[:700])
    plan = Plan(
        model=str(model), data=str(text), eval_data=str(text), max_length=32,
        recipes={"plain": Recipe((Drop(keep=1),), ends(1, 1))},
        deltas={"lora": {"kind": "lora", "rank": 2, "reach": "all"}, "prompt": {"kind": "prompt"}},
        options=TrainOptions(steps=4, lr=1e-2), full_lr=(1e-3,),
        decode={"drawn": HOW, "read": replace(HOW, text=str(text))},
    )  # fmt: skip
    return replace(plan, **changes)


def test_each_way_to_decode_is_a_row_beside_the_plugged_one(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    plan = make_plan(model_folder("llama"), text_file)
    one, _ = run_plans([plan], tmp_path / "one", "cpu")
    names = ["lora", "lora, decoded: drawn", "lora, decoded: read", "prompt"]
    assert [row["delta"] for row in one] == names
    plain, drawn, read = (row["scores"] for row in one[:3])
    assert len({plain["plug_in"], drawn["plug_in"], read["plug_in"]}) == 3
    for decoded in (drawn, read):
        assert {**decoded, "plug_in": 0} == {**plain, "plug_in": 0}
    assert "at_logits" in one[1]["details"]["plug_in"]
    two, _ = run_plans([plan], tmp_path / "two", "cpu", jobs=2)
    assert [row["scores"] for row in two] == [row["scores"] for row in one]


def test_another_way_to_decode_tunes_nothing_again(
    model_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(model_folder("llama"), text_file, decode={"drawn": HOW})
    first = [row.to_json() for row in Lab(plan, tmp_path, "cpu").run()]
    monkeypatch.setattr("offsite.lab.stages.tune_and_plug", lambda *_: pytest.fail("tuned again"))
    plan = replace(plan, decode={**plan.decode, "weaker": replace(HOW, strength=0.5)})
    lab = Lab(plan, tmp_path, "cpu")
    assert [str(cell) for cell in lab.missing()] == ["decoded  plain  lora  weaker  seed 0"]
    rows = [row.to_json() for row in lab.run()]
    assert [row["delta"] for row in rows][1:3] == ["lora, decoded: drawn", "lora, decoded: weaker"]
    assert rows[1]["scores"] == first[1]["scores"]


def test_a_text_to_decode_on_is_named_as_in_the_file(tmp_path: Path) -> None:
    assert decode_of("sample", tmp_path) == Decode("sample")
    assert decode_of("a.txt", tmp_path).file == str(tmp_path / "a.txt")
    drawn = decode_of({"text": "sample:a.txt", "steps": 5}, tmp_path)
    assert (drawn.text, drawn.file) == (f"sample:{tmp_path}/a.txt", f"{tmp_path}/a.txt")
    assert drawn.steps == 5
    with pytest.raises(OffsiteError, match="no option 'stpes'"):
        decode_of({"text": "sample", "stpes": 5}, tmp_path)
    with pytest.raises(OffsiteError, match="text"):
        decode_of({"steps": 5}, tmp_path)


def test_a_tuner_who_finds_public_text_is_a_second_trial(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    plan = make_plan(
        model_folder("llama"), text_file, decode={}, deltas={"full": {"kind": "full"}},
        calibration=str(text_file), baseline=False,
    )  # fmt: skip
    (before,) = (row.to_json() for row in Lab(plan, tmp_path, "cpu").run())
    lab = Lab(replace(plan, healed_tokens=2560), tmp_path, "cpu")
    (cell,) = lab.missing()
    assert str(cell) == "healed  plain  lr 0.001  2,560 public tokens first  seed 0"
    (row,) = (row.to_json() for row in lab.run())
    assert row["scores"] == before["scores"]
    assert row["healed_public"] < row["scores"]["healed"]  # ten more steps on the same text
    assert row["margin_public"] == row["healed_public"] - row["scores"]["plug_in"]
    with pytest.raises(OffsiteError, match="calibration data"):
        replace(plan, healed_tokens=5, calibration=None)
