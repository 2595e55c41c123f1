"""The data of a lab's plans is read before any model, and once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offsite.compress.recipe import Recipe
from offsite.lab.checking import check_plans
from offsite.lab.plan import Plan
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import ends
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions


def test_plans_of_one_model_read_each_text_once(
    model_folder: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    prepare = CausalText.prepare

    def counted(self: CausalText, *args: Any) -> Any:
        prepared.append(self.max_length)
        return prepare(self, *args)

    monkeypatch.setattr(CausalText, "prepare", counted)
    model, text = str(model_folder("llama")), str(text_file)
    half = Recipe.parse("uniform@0.5", Checkpoint.of(model, "AutoModelForCausalLM"), ends(1, 1))
    plan = Plan(
        model=model, data=text, eval_data=text, calibration=text, recipes={"half": half},
        max_length=16,
    )  # fmt: skip
    plans = [plan, replace(plan, options=TrainOptions(lr=1e-4)), replace(plan, max_length=8)]
    checked = check_plans(plans)
    assert prepared == [16, 16, 8, 8]  # to score on, and the same text to tune on
    assert checked[0].public is checked[1].private  # one text of one kind
    assert checked[0].evaluation is checked[1].evaluation
    assert checked[2].evaluation is not checked[0].evaluation
