"""The vision experiment files are grids whose recipes and deltas exist and fit their models."""

from __future__ import annotations

from pathlib import Path

import pytest

from offsite.compress.step import plan as positions
from offsite.deltas import parse_method
from offsite.lab.experiment import read_experiment
from offsite.model.split import make_split

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    ("name", "blocks", "kept", "tasks"),
    [("clip-vit-g", 40, 16, 6), ("eva-like", 24, 11, 6)],
)
def test_vision_experiments_fit_their_models(name: str, blocks: int, kept: int, tasks: int) -> None:
    plans = read_experiment(FOLDER / f"vision-{name}.toml")
    assert len(plans) == tasks
    for plan in plans:
        assert plan.task == "image-classification" and plan.calibration and plan.data
        for recipe in ("uniform", "distilled"):
            found = plan.recipes[recipe]
            middle = make_split(found.adapter, blocks).middle
            assert len(positions(found.steps, middle, 0)[0]) == kept
        assert {parse_method(m).kind for m in plan.deltas.values()} == {"full", "lora", "head"}
