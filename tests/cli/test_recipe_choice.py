"""Which recipe an owner gets who leaves something open, and what is never shipped unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offsite.cli.recipe import COPIES, RecipeOptions
from offsite.compress import Align, Drop, Quantise
from offsite.compress.recipe import Recipe
from offsite.errors import OffsiteError
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import parse_adapter


@pytest.mark.parametrize(
    ("options", "data", "expected"),
    [
        (RecipeOptions(keep=2), True, Drop(keep=2, by="influence")),
        (RecipeOptions(keep=2), False, Drop(keep=2)),
        (RecipeOptions("uniform", keep=2), True, Drop(keep=2)),
        (RecipeOptions("uniform@0.5"), True, Drop(keep=2)),
        (RecipeOptions(whole=True), True, Drop(keep=4)),
    ],
)
def test_data_chooses_by_influence(
    options: RecipeOptions, data: bool, expected: Drop, model_folder: Any
) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule = parse_adapter("ends:1,1")
    assert options.choose(full, rule, data) == Recipe((expected,), rule)


def test_nothing_chosen_ships_half_of_the_middle(model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule = parse_adapter("ends:1,1")
    nothing = RecipeOptions()
    assert nothing.choose(full, rule, data=False).steps == (Drop(keep=2),)
    assert "may end worse than untuned" in str(nothing.notice(data=False))
    taught = nothing.choose(full, rule, data=True)
    assert taught.steps == (Drop(keep=2, by="influence"), Align())
    assert "--recipe influence-align --budget 0.5" in str(nothing.notice(data=True))
    for chosen in (RecipeOptions(keep=2), RecipeOptions(whole=True)):
        assert chosen.notice(data=False) is None


def test_a_middle_of_one_block_never_leaves_unasked(model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    with pytest.raises(OffsiteError, match="--whole if you mean it"):
        RecipeOptions().choose(full, parse_adapter("ends:3,2"), data=False)


@pytest.mark.parametrize("preset", COPIES)
def test_a_copy_in_fewer_bits_is_asked_for(preset: str, model_folder: Any) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule = parse_adapter("ends:1,1")
    with pytest.raises(OffsiteError, match="a copy of the model in fewer bits"):
        RecipeOptions(preset).choose(full, rule, data=False)
    whole = RecipeOptions(preset, whole=True).choose(full, rule, data=False).steps
    assert isinstance(whole[-1], Quantise) and not [s for s in whole if isinstance(s, Drop)]


def test_a_whole_recipe_takes_no_further_options(model_folder: Any, tmp_path: Path) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule = parse_adapter("ends:1,1")
    file = tmp_path / "steps.json"
    file.write_text('[{"kind": "drop", "keep": 2}]')
    for written in (str(file), "uniform@0.5"):
        assert RecipeOptions(written).choose(full, rule, data=False).steps == (Drop(keep=2),)
        with pytest.raises(OffsiteError, match="sets every step already"):
            RecipeOptions(written, keep=1).choose(full, rule, data=False)


def test_every_written_form_is_the_same_recipe(model_folder: Any, tmp_path: Path) -> None:
    full = Checkpoint.of(str(model_folder("llama")), "AutoModelForCausalLM")
    rule, steps = parse_adapter("ends:1,1"), [{"kind": "drop", "keep": 2}]
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(steps))
    expected = Recipe((Drop(keep=2),), rule)
    for value in (steps, str(file), "uniform@0.5", {"recipe": steps}, {"steps": "uniform@0.5"}):
        assert Recipe.parse(value, full, rule) == expected, value
    assert Recipe.parse("uniform", full, rule, budget=0.5) == expected
    own = Recipe.parse({"recipe": "uniform@0.5", "adapter": "0"}, full, rule)
    assert own.adapter == parse_adapter("0")
    wrong: tuple[tuple[Any, str], ...] = (
        ("uniform@half", "write PRESET@BUDGET"),
        ("unknown@0.5", "is not a preset"),
        ({"recipe": steps, "keep": 2}, "cannot have 'keep'"),
        (3, "This is not a list"),
    )
    for value, message in wrong:
        with pytest.raises(OffsiteError, match=message):
            Recipe.parse(value, full, rule)
