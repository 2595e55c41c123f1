"""The frontier: grids, means over seeds, the front against its definition, an owner's wish."""

from __future__ import annotations

import builtins
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from offsite.cli import app
from offsite.compress.presets import PRESETS, Shape
from offsite.errors import MissingExtraError, OffsiteError
from offsite.lab.sweep import Point, choose, draw, front, grid, left_out, points
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import Split, ends


class _Shape(Shape):
    """Of bookling-31m, without a model."""

    blocks, hidden, parameters, itemsize = 20, 320, 1_070_000, 2
    attention = ((320, 320), (64, 320), (64, 320), (320, 320))


SHAPE = _Shape(nn.Module(), Split((0,), 21))


def row(recipe: str, seed: int, plug: float, tuned: float, size: float = 0.5) -> dict[str, Any]:
    scores = {"zero_shot": 5.0, "full_tuned": 3.0, "plug_in": plug, "emulator_tuned": tuned}
    scores["healed"] = tuned - 0.1
    return {
        "recipe": recipe, "budget": 0.5, "seed": seed, "recovered": (5 - plug) / 2,
        "scores": scores, "gap": tuned - plug, "margin": scores["healed"] - plug,
        "verbatim": 0.1, "bytes_offer": 100 * size, "bytes_model": 100, "seconds_offer": 2.0,
    }  # fmt: skip


def some(count: int) -> list[Point]:
    draws = random.Random(0)
    return points(
        row(str(i), 0, 3 + draws.random(), 4 + draws.random(), draws.random()) for i in range(count)
    )


def test_a_grid_holds_every_distinct_recipe_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shape, "of", classmethod(lambda *args: SHAPE))
    full = Checkpoint("model")
    small = "greedy-narrow-align-int8"  # at 0.6 it would be the whole middle in 8 bits
    names = [f"{name}@0.3" if name == small else name for name in PRESETS]
    cells = grid([*names, "crash@0.2"], (0.6, 0.45, 0.3), full, ends(2, 2))
    assert {"uniform@0.45", "crash@0.2"} <= set(cells)
    assert [name for name in cells if "int4" in name] == ["int4@0.6"]  # below every budget
    assert all(recipe.steps for recipe in cells.values())
    with pytest.raises(OffsiteError, match="not a preset"):
        grid(["best"], (0.5,), full, ends(2, 2))
    with pytest.raises(OffsiteError, match="whole middle in 8 bits"):
        grid([small], (0.6,), full, ends(2, 2))


def test_points_are_means_over_seeds() -> None:
    rows = [row("a", 0, 3.5, 3.6), row("a", 1, 3.7, 4.0), row("b", 0, 3.2, 3.3)]
    rows.append({**row("c", 0, 3, 3), "recovered": None})
    rows.append({**row("b", 1, 3, 3), "recovered": None})
    b, a = points(rows)
    assert (a.left_out, b.left_out) == (0, 1)
    assert [sentence[:22] for sentence in left_out([a, b])] == ["b: the mean of 1 of 2 "]
    assert (a.recipe, b.recipe, a.seeds, b.seeds) == ("a", "b", 2, 1)
    assert a.plug_in == pytest.approx(3.6) and a.gap == pytest.approx(0.2)
    assert a.healed == pytest.approx(3.7) and a.margin == pytest.approx(0.1)
    assert a.recovered == pytest.approx(0.7) and a.size == 0.5 and a.to_json()["seeds"] == 2


def test_the_front_is_what_nothing_dominates() -> None:
    found = some(60)
    expected = [
        p for p in found
        if not any(
            q.recovered >= p.recovered and q.margin >= p.margin and q != p for q in found
        )
    ]  # fmt: skip
    assert front(found) == sorted(expected, key=lambda p: -p.recovered)
    assert front([]) == []


def test_the_wish_is_the_best_of_all_that_meet_it() -> None:
    found = some(60)
    chosen = choose(found, 0.7, bytes=0.6)
    assert chosen.margin == max(p.margin for p in found if p.recovered >= 0.7 and p.size <= 0.6)
    with pytest.raises(OffsiteError, match="the nearest is"):
        choose(found, 1.5)
    with pytest.raises(OffsiteError, match="has a margin of 9; the nearest is"):
        choose(found, 0.5, margin=9)
    with pytest.raises(OffsiteError, match="smallest takes"):
        choose(found, 0.5, bytes=0.0)


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "a.svg"):
        draw(some(9), tmp_path / name, metric="loss")
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(OffsiteError, match="run the sweep first"):
        draw([], tmp_path / "b.png", metric="accuracy")
    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingExtraError, match=r"offsite\[plot\]"):
        draw(some(3), tmp_path / "c.png", metric="loss")


def test_without_matplotlib_a_sweep_stops_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr("offsite.lab.results.run_plans", lambda *args, **_: ran.append(args))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ["sweep", "model", "--data", str(tmp_path), "--eval-data", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, MissingExtraError) and not ran
    command = ["importance", "model", "--data", str(tmp_path), "--out", str(tmp_path / "a.png")]
    assert isinstance(CliRunner().invoke(app, command).exception, MissingExtraError)


@pytest.mark.parametrize(
    ("recovered", "target", "message"),
    [(None, None, "gained nothing"), (0.5, "recovered=0.99", "No recipe recovers 99%")],
)
def test_a_sweep_that_ends_badly_still_writes_its_rows(
    recovered: float | None, target: str | None, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = {**row("uniform@0.5", 0, 3.5, 3.6), "recovered": recovered}
    shown: list[Any] = []
    monkeypatch.setattr("offsite.lab.results.run_plans", lambda *args, **_: ([found], {}))
    monkeypatch.setattr("offsite.cli.sweep.show_rows", lambda rows, *rest: shown.extend(rows))
    monkeypatch.setattr(Shape, "of", classmethod(lambda *args: SHAPE))
    found |= {"metric": "loss", "higher_is_better": False}
    wish = [] if target is None else ["--target", target]
    command = ["sweep", "model", "--data", str(tmp_path), "--eval-data", str(tmp_path)]
    command += ["--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--recipe", "uniform", "--budgets", "0.5", *wish])
    assert message in str(result.exception) and shown == [found]
