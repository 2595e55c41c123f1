"""The papers' own experiments: grids whose recipes fit a small stand-in of their model."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from offsite.compress.distill import Distill
from offsite.compress.scaleot.step import LayerReplace
from offsite.deltas import parse_method
from offsite.lab.experiment import read_experiment
from offsite.model.split import example_split
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from offsite.tasks.text.causal import CausalText
from tests.support.models import TEXT, language_model

FOLDER = Path(__file__).parents[2] / "experiments"
TASKS = [
    "openbookqa", "piqa", "arc_easy", "arc_challenge", "sciq", "webquestions", "text",
]  # fmt: skip
PAPERS = {  # family, the option that sets its depth, blocks, blocks of the middle kept
    "gpt2-xl": ("gpt2", "n_layer", 48, 16),
    "opt-1.3b": ("opt", "num_hidden_layers", 24, 8),
    "opt-6.7b": ("opt", "num_hidden_layers", 32, 18),
    "bloom-7.1b": ("bloom", "n_layer", 30, 12),
    "llama-7b": ("llama", "num_hidden_layers", 32, 14),
}


def small(step: Any) -> Any:
    """The same step with one short pass instead of many."""
    if isinstance(step, (Distill, LayerReplace)):
        step = replace(step, steps=1, batch_size=2)
    return replace(step, rank=2) if "rank" in {f.name for f in fields(step)} else step


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_fit_their_models(name: str, tokenizer: Any, tmp_path: Path) -> None:
    family, depth, blocks, kept = PAPERS[name]
    plans = read_experiment(FOLDER / f"{name}.toml")
    assert [plan.task for plan in plans] == TASKS
    for plan in plans:
        assert plan.data is not None and plan.options.lr and plan.options.precision == "bfloat16"
        load_task(plan.task)
        assert all(parse_method(method) for method in plan.deltas.values())
    public = tmp_path / "public.txt"
    public.write_text(TEXT * 4)
    model = language_model(family, **{depth: blocks})
    for recipe in plans[0].recipes.values():
        _, record = make_offer(
            model,
            adapter=example_split(recipe.adapter, blocks).adapter,
            recipe=[small(step) for step in recipe.steps],
            data=str(public),
            task=CausalText(16),
            processor=tokenizer,
        )
        entry = record.offers[0]
        assert entry.total == blocks and len(entry.adapter) == 4
        shared = any(step.kind in ("share", "layer_replace") for step in recipe.steps)
        assert len(entry.middle) == (blocks - 4 if shared else kept)
        if "distill" in {step.kind for step in recipe.steps}:
            distill = next(step for step in recipe.steps if isinstance(step, Distill))
            assert (distill.lm_weight, distill.kd_weight, distill.lr) == (1, 30, 1e-4)
