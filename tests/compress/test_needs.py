"""What a step says it needs is what it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from offsite.compress import STEPS, Align, Distill, Drop, GradOT, LayerReplace, Narrow
from offsite.compress.step import Context, compress, plan
from offsite.errors import OffsiteError
from tests.support.context import world

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "drop": [
        {"keep": 1, "by": by}
        for by in ("uniform", "random", "influence", "angular", "leave_one_out", "greedy")
    ],
    "cluster": [{"keep": 1}],
    "layer_replace": [{"alpha": 0.5, "steps": 1}, {"alpha": 0.0}],
    "rank": [{"beta": 0.6}],
    "gradot": [{}, {"attention": 1.0, "feed_forward": 1.0}],
    "narrow": [{}, {"feed_forward": 1.0}],
    "prune": [{"keep": 0.5}],
    "noise": [{"scale": 0.1}],
    "distill": [{"steps": 1}],
    "align": [{"steps": 1}],
}
CASES = [(kind, options) for kind in STEPS for options in OPTIONS.get(kind, [{}])]


def ask(step: Any, context: Context) -> bool:
    """Whether a step asks for data where there is none."""
    try:
        compress([step], replace(context, data=None))
    except OffsiteError as error:
        assert "data of the owner" in str(error)
        return True
    return False


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_step_asks_for_data_if_it_says_so(kind: str, options: dict[str, Any]) -> None:
    context = world("llama")
    step = STEPS[kind](**options)
    assert ask(step, context) == step.needs.data


def test_long_steps_say_that_they_can_be_resumed() -> None:
    work = {kind for kind, options in CASES if STEPS[kind](**options).needs.work}
    assert work == {Align.kind, Distill.kind, LayerReplace.kind}
    assert LayerReplace(alpha=0.5, learned="folder").needs.learned == "folder"
    assert not LayerReplace(alpha=0.5, learned="folder").needs.data
    assert Narrow().needs.data and GradOT().needs.data


def test_a_plan_ends_at_the_first_step_that_needs_weights() -> None:
    recipe = [Drop(keep=3), Drop(keep=2, by="influence"), Drop(keep=1)]
    assert plan(recipe, range(2, 7), 0) == ((2, 4, 6), tuple(recipe[1:]))
    assert plan(recipe[:1], range(2, 7), 0) == ((2, 4, 6), ())
