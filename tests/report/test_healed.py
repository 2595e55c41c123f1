"""The number that protects: an emulator whose tuner tunes every weight, and the plug-in over it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress import Quantise
from offsite.compress.drop import Drop
from offsite.compress.recipe import Recipe
from offsite.errors import OffsiteError
from offsite.lab.baselines import best_rate, trainable
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.scores.scores import Scores
from offsite.training.options import TrainOptions


@pytest.mark.parametrize(("higher", "margin"), [(True, 0.2), (False, -0.2)])
def test_the_margin_is_larger_when_better_for_the_owner(higher: bool, margin: float) -> None:
    scores = Scores("accuracy", higher, healed=0.5, plug_in=0.7)
    assert scores.margin == pytest.approx(margin)
    assert scores.to_json()["margin"] == scores.margin
    assert Scores.from_json(scores.to_json(), "scores.json") == scores
    assert replace(scores, healed=None).margin is None


def test_every_weight_of_a_quantised_offer_can_be_tuned(model_folder: Any) -> None:
    offer, _ = make_offer(model_folder("llama"), adapter=ends(1, 1), recipe=[Quantise(bits=4)])
    batch = torch.arange(12)[None]
    model = trainable(offer.model)
    with torch.no_grad():
        expected, found = (m(input_ids=batch).logits for m in (offer.model, model))
    assert torch.allclose(expected.float(), found, atol=1e-5)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    weights = sum(p.numel() for p in model.parameters())
    assert weights > sum(p.numel() for p in offer.model.parameters())


def test_the_best_rate_counts_and_all_are_told() -> None:
    tried: dict[float, dict[str, Any]] = {
        1e-4: {"value": 3.0},
        1e-3: {"value": 2.0},
        1e-2: {"value": None},
    }
    rates = {"0.0001": 3.0, "0.001": 2.0, "0.01": None}
    assert best_rate(tried, higher=False) == {"value": 2.0, "lr": 1e-3, "rates": rates}
    assert best_rate(tried, higher=True)["lr"] == 1e-4
    lost: dict[float, dict[str, Any]] = {1e-2: {"value": None}}
    assert best_rate(lost, higher=True)["value"] is None


def make_plan(model: Path, text: Path, **changes: Any) -> Plan:
    plan = Plan(
        model=str(model), data=str(text), eval_data=str(text), max_length=32,
        recipes={"one": Recipe((Drop(keep=1),), ends(1, 1))},
        deltas={"full": {"kind": "full"}, "lora": {"kind": "lora", "rank": 2}},
        options=TrainOptions(steps=8, lr=1e-2), full_lr=(1e-5, 1e-2),
    )  # fmt: skip
    return replace(plan, **changes)


def test_a_lab_heals_every_recipe_once_and_shares_it(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    plan = make_plan(model_folder("llama"), text_file)
    full, lora = (row.to_json() for row in Lab(plan, tmp_path, "cpu").run())
    cells = [json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json")]
    healed = [cell for cell in cells if cell["key"]["stage"] == "healed"]
    assert len(healed) == 2  # a cell for each rate, none for the second delta
    assert full["scores"]["healed"] == lora["scores"]["healed"]
    known = full["details"]["healed"]
    assert known["lr"] == 1e-2 and known["value"] == min(known["rates"].values())
    assert full["scores"]["healed"] < full["scores"]["emulator_zero_shot"]
    assert full["scores"]["healed"] < lora["scores"]["emulator_tuned"]  # more is tuned
    assert full["margin"] == pytest.approx(full["scores"]["healed"] - full["scores"]["plug_in"])
    assert full["details"]["full_tuned"]["lr"] == 1e-2


def test_healing_can_be_left_out_and_needs_a_rate(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    plan = make_plan(model_folder("llama"), text_file, healed=False, baseline=False)
    row = next(iter(Lab(plan, tmp_path, "cpu").run())).to_json()
    assert "healed" not in row["scores"] and "margin" not in row
    with pytest.raises(OffsiteError, match="needs a learning rate"):
        make_plan(model_folder("llama"), text_file, full_lr=())
