"""Which recipe an owner gets who leaves something open, and what is never shipped unasked."""

from __future__ import annotations

from typing import Any

import pytest

from offsite.compress import Align, Drop, Quantise
from offsite.compress.recipe import COPIES, RecipeChoice
from offsite.errors import OffsiteError
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


def test_nothing_chosen_ships_half_of_the_middle(model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule = parse_adapter("ends:1,1")
    alone, taught = RecipeChoice(), RecipeChoice(data=True)
    assert alone.steps(full, rule) == [Drop(keep=2)]
    assert "may end worse than untuned" in str(alone.notice)
    assert taught.steps(full, rule) == [Drop(keep=2, by="influence"), Align()]
    assert "--recipe influence-align --budget 0.5" in str(taught.notice)
    assert RecipeChoice(keep=2).notice is None and RecipeChoice(whole=True).notice is None


def test_a_middle_of_one_block_never_leaves_unasked(model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    with pytest.raises(OffsiteError, match="add --whole if you mean it"):
        RecipeChoice().steps(full, parse_adapter("ends:3,2"))


@pytest.mark.parametrize("preset", COPIES)
def test_a_copy_in_fewer_bits_is_asked_for(preset: str, model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule = parse_adapter("ends:1,1")
    with pytest.raises(OffsiteError, match="a copy of the model in fewer bits"):
        RecipeChoice(preset).steps(full, rule)
    whole = RecipeChoice(preset, whole=True).steps(full, rule)
    assert isinstance(whole[-1], Quantise) and not [s for s in whole if isinstance(s, Drop)]
