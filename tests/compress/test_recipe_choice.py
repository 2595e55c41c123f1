"""Which blocks stay when an owner only says how many: the influential ones, where that is known."""

from __future__ import annotations

from typing import Any

import pytest

from offsite.compress.drop import Drop
from offsite.compress.recipe import RecipeChoice
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import parse_adapter


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (RecipeChoice(keep=2, data=True), Drop(keep=2, by="influence")),
        (RecipeChoice(keep=2), Drop(keep=2)),
        (RecipeChoice("uniform", keep=2, data=True), Drop(keep=2)),
        (RecipeChoice(whole=True, data=True), Drop(keep=4)),
    ],
)
def test_data_chooses_by_influence(choice: RecipeChoice, expected: Drop, model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    assert choice.steps(full, parse_adapter("ends:1,1")) == [expected]
