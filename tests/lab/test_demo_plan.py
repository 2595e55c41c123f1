"""The demo's plan: texts that every Python has, and recipes that its lab accepts."""

from __future__ import annotations

from pathlib import Path

from offsite.demo import PUBLIC, make_plan
from offsite.lab.checking import check_plan


def test_the_demo_can_be_run_anywhere(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "demo", steps=2, seed=0)
    check_plan(plan)
    assert plan.calibration is not None and plan.data is not None
    public = Path(plan.calibration).read_text(encoding="utf-8")
    private = Path(plan.data).read_text(encoding="utf-8")
    assert PUBLIC / 2 < len(public) <= PUBLIC + 1
    assert not set(public.split("\n\n")) & {p for p in private.split("\n\n") if len(p) > 200}
    kinds = {step.kind for recipe in plan.recipes.values() for step in recipe.steps}
    assert kinds == {"drop", "align"}
