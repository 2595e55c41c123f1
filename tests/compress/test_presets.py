"""Presets meet their budget, and say so when they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offsite.codec import to_json
from offsite.compress import Align, crash, importance, parse_recipe
from offsite.compress.gradot import kfac
from offsite.compress.presets import PRESETS, Shape, make_recipe
from offsite.compress.quantise import Quantise
from offsite.compress.scaleot.learning import learn
from offsite.compress.scaleot.training import Training
from offsite.compress.step import compress
from offsite.errors import OffsiteError
from offsite.model.split import whole_middle
from tests.support.context import world


def stored(middle: Any) -> int:
    """Bytes of a middle, every tensor once."""
    tensors = {id(t): t for b in middle.blocks for t in b.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.itemsize for t in tensors.values())


LONG = {
    "distil", "leave-one-out", "influence-align", "narrow-align", "greedy-narrow-align",
    "greedy-narrow-align-int8",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*PRESETS} - LONG - {"prune"}))
def test_presets_meet_their_budget(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "BATCHES", 1)
    monkeypatch.setattr(crash, "SAMPLES", 8)
    monkeypatch.setattr(kfac, "ROWS", 1)
    context = world("llama", num_hidden_layers=14, hidden_size=128, intermediate_size=256)
    shape = Shape(context.model, context.split)
    learn(context, Training(steps=1)).save(tmp_path / "learned")
    whole = stored(whole_middle(context.model, context.split))
    for budget in (0.6, 0.45, 0.3):
        recipe = make_recipe(name, shape, budget, learned=str(tmp_path / "learned"))
        assert parse_recipe([to_json(step) for step in recipe]) == recipe
        share = stored(compress(recipe, context)) / whole
        assert share <= budget + 0.07
        assert share >= budget - 0.07 or name in ("int8", "int4", "noise")


def test_what_cannot_be_made_is_refused() -> None:
    context = world()
    shape = Shape(context.model, context.split)
    assert shape.blocks == 4 and shape.hidden == 16 and len(shape.attention) == 4
    with pytest.raises(OffsiteError, match="uniform"):
        make_recipe("unknown", shape, 0.5)
    with pytest.raises(OffsiteError, match="share of the middle's bytes"):
        make_recipe("uniform", shape, 1.5)


@pytest.mark.parametrize("name", ["influence-align", "narrow-align", "greedy-narrow-align"])
def test_aligned_presets_meet_their_budget_before_they_align(name: str) -> None:
    context = world("llama", num_hidden_layers=14, hidden_size=128, intermediate_size=512)
    whole = stored(whole_middle(context.model, context.split))
    for budget in (0.6, 0.45):
        *steps, align = make_recipe(name, Shape(context.model, context.split), budget)
        assert isinstance(align, Align)
        assert stored(compress(steps, context)) / whole == pytest.approx(budget, abs=0.05)


def test_eight_bits_leave_room_for_more_of_the_middle() -> None:
    context = world("llama", num_hidden_layers=14, hidden_size=128, intermediate_size=512)
    whole = stored(whole_middle(context.model, context.split))
    shape = Shape(context.model, context.split)
    for budget in (0.2, 0.15):
        *steps, align, quantise = make_recipe("greedy-narrow-align-int8", shape, budget)
        assert isinstance(align, Align) and isinstance(quantise, Quantise)
        assert stored(compress([*steps, quantise], context)) / whole == pytest.approx(
            budget, abs=0.03
        )


def test_a_whole_middle_in_eight_bits_is_not_made_by_a_large_budget() -> None:
    context = world("llama", num_hidden_layers=6)
    with pytest.raises(OffsiteError, match=r"whole middle in 8 bits.*use less than 0\.27"):
        make_recipe("greedy-narrow-align-int8", Shape(context.model, context.split), 0.5)


def test_a_budget_below_attention_cannot_be_met_by_channels() -> None:
    context = world("llama", num_hidden_layers=6, hidden_size=128, intermediate_size=128)
    with pytest.raises(OffsiteError, match="leaves no feed-forward channels: attention alone"):
        make_recipe("narrow-align", Shape(context.model, context.split), 0.2)
