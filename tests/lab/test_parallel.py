"""Many cells at once: the same figures, nothing made twice, and a failure that stops little."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress import Align, Drop, LayerReplace
from offsite.compress.recipe import Recipe
from offsite.errors import OffsiteError
from offsite.lab import emulators
from offsite.lab.cells import Cell, plan_cells
from offsite.lab.lab import Lab
from offsite.lab.parallel import Failure, Worker, dispatch, gpus, work
from offsite.lab.plan import Plan
from offsite.lab.results import run_plans
from offsite.model.split import ends
from offsite.training.options import TrainOptions

ALIGNED = Recipe((Drop(keep=1), Align(steps=2, batch_size=2)), ends(1, 1))


def make_plan(model: Path, text: Path, **changes: Any) -> Plan:
    plan = Plan(
        model=str(model), data=str(text), eval_data=str(text), calibration=str(text),
        max_length=32,
        recipes={"plain": Recipe((Drop(keep=1),), ends(1, 1)), "aligned": ALIGNED},
        deltas={"full": {"kind": "full"}, "lora": {"kind": "lora", "rank": 2}},
        options=TrainOptions(steps=2, lr=1e-3), full_lr=(1e-3,), baseline=False,
    )  # fmt: skip
    return replace(plan, **changes)


def test_processes_find_what_one_process_finds_and_a_failure_stops_little(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    text_file.write_text(text_file.read_text()[:600])
    step = LayerReplace(alpha=0.5, steps=3, batch_size=2, lm_weight=1e300)
    bad = Recipe((step,), ends(1, 1))
    good = make_plan(model_folder("llama"), text_file, recipes={"aligned": ALIGNED})
    plan = replace(good, recipes={"bad": bad, **good.recipes})
    one, _ = run_plans([good], tmp_path / "one", "cpu")
    with pytest.raises(OffsiteError, match=r"5 of 10 cells.*diverged.*run the same command again"):
        run_plans([plan], tmp_path / "two", "cpu", jobs=2)
    two, _ = run_plans([plan], tmp_path / "two", "cpu", cached=True)
    assert [row["scores"] for row in two] == [row["scores"] for row in one]
    names = [{p.name for p in (tmp_path / n / "cells").iterdir()} for n in ("one", "two")]
    assert names[0] == names[1]
    assert len(list((tmp_path / "two" / "emulators").iterdir())) == 1


def test_a_process_ends_when_the_one_that_asks_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.lab.parallel.os.dup2", lambda *_: None)
    monkeypatch.setattr("offsite.lab.parallel.signal.signal", lambda *_: None)
    mine, theirs = multiprocessing.Pipe()
    mine.close()
    work(theirs, [], tmp_path, "cpu", torch.get_num_threads(), tmp_path / "0.txt")


def test_an_emulator_is_made_once_for_all_that_is_tuned_on_it(
    model_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(model_folder("llama"), text_file, recipes={"aligned": ALIGNED})
    first = [row.to_json() for row in Lab(plan, tmp_path, "cpu").run()]
    monkeypatch.setattr("offsite.lab.stages.make_emulator", lambda *_: pytest.fail("made again"))
    other = tmp_path / "other.txt"  # the owner's data is the same, the tuner's is not
    other.write_text(text_file.read_text()[200:900])
    rows = list(
        Lab(replace(plan, data=str(other), deltas={"new": {"kind": "full"}}), tmp_path).run()
    )
    assert rows[0].extra["bytes_offer"] == first[0]["bytes_offer"]
    assert rows[0].scores.emulator_zero_shot == first[0]["scores"]["emulator_zero_shot"]
    with pytest.raises(pytest.fail.Exception, match="made again"):
        list(Lab(replace(plan, seeds=(1,)), tmp_path).run())


def test_a_lost_emulator_is_made_again_if_a_cell_needs_it(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    plan = make_plan(model_folder("llama"), text_file, recipes={"aligned": ALIGNED}, healed=False)
    lab = Lab(plan, tmp_path, "cpu")
    assert [cell.stage for cell in lab.missing()] == ["zero_shot", "offer", "tuned", "tuned"]
    list(lab.run())
    assert not lab.missing()
    folder = lab.emulator_folder("aligned", 0)
    assert folder is not None
    (folder / emulators.OFFER).rename(tmp_path / "gone")
    assert not lab.missing()  # nobody needs it
    lab.path(Cell("tuned", 0, "aligned", "lora")).unlink()
    assert [str(cell) for cell in lab.missing()] == [
        "offer  aligned  seed 0", "tuned  aligned  lora  seed 0",
    ]  # fmt: skip
    again = Lab(plan, tmp_path, "cpu")
    for cell in again.missing():
        again.do(cell)
    assert not again.missing() and (folder / emulators.OFFER).is_dir()


class Said:
    """A worker's end of a pipe that answers at once."""

    def __init__(self, bad: str) -> None:
        self.bad, self.job = bad, None

    def send(self, job: Any) -> None:
        self.job = job

    def recv(self) -> Failure | None:
        return Failure("No.") if self.bad in str(self.job) else None


class Crowded(Said):
    """A process of a machine that has memory for two cells at a time."""

    workers: list[Worker]
    most = 0

    def recv(self) -> Failure | None:
        running = sum(1 for worker in self.workers if worker.job)
        Crowded.most = max(Crowded.most, running)
        return (
            Failure("No memory.", memory=True) if running > 2 or self.bad in str(self.job) else None
        )


def test_a_cell_without_memory_is_tried_again_when_fewer_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph: dict[Any, Any] = {(0, Cell("healed", seed, "a")): () for seed in range(8)}
    alive: Any = type("Alive", (), {"is_alive": lambda self: True})()
    workers = [Worker(alive, Crowded("seed=7"), Path()) for _ in range(4)]  # type: ignore[arg-type]
    Crowded.workers = workers
    monkeypatch.setattr("offsite.lab.parallel.wait", lambda busy: [busy[0]])
    found = [(job[1].seed, reason) for job, reason in dispatch(graph, workers)]
    assert Crowded.most == 4
    assert sorted(found) == [*((seed, None) for seed in range(7)), (7, "No memory.")]


def test_a_failure_takes_only_what_needs_it_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Cell("offer", 0, "a"), Cell("offer", 0, "b")
    on_a, on_b = Cell("tuned", 0, "a", "full"), Cell("tuned", 0, "b", "full")
    graph = {(0, b): (), (0, on_b): ((0, b),), (0, a): (), (0, on_a): ((0, a),)}
    last = Cell("healed", 0, "a")  # when it is lost too, nobody is at work
    graph[0, last] = ((0, on_a),)
    alive: Any = type("Alive", (), {"is_alive": lambda self: True})()
    workers = [Worker(alive, Said("recipe='a'"), Path()) for _ in range(2)]  # type: ignore[arg-type]
    monkeypatch.setattr("offsite.lab.parallel.wait", lambda busy: [busy[0]])  # never of nobody
    found = {job[1]: reason for job, reason in dispatch(graph, workers)}
    assert found[a] == "No." and found[b] is None and found[on_b] is None
    assert "needs" in (found[on_a] or "") and found[last] == found[on_a]


def test_cells_come_after_what_they_need(model_folder: Any, text_file: Path) -> None:
    plan = make_plan(model_folder("llama"), text_file, seeds=(0, 1), baseline=True)
    graph = plan_cells(plan)
    order = list(graph)
    assert all(
        order.index(need) < order.index(cell) for cell, needs in graph.items() for need in needs
    )
    stages = [cell.stage for cell in order]
    assert stages.count("tuned") == 8 and stages.count("offer") == 4
    assert stages.count("full_tuned") == 2 and stages.count("zero_shot") == 1


def test_a_run_that_is_cut_off_leaves_whole_rows(model_folder: Any, text_file: Path) -> None:
    plan = make_plan(model_folder("llama"), text_file, seeds=(0, 1), baseline=True)
    rows = [c for c in plan_cells(plan) if c.stage in ("offer", "tuned", "healed")]
    starts = [index for index, cell in enumerate(rows) if cell.stage == "offer"] + [len(rows)]
    for begin, end in pairwise(starts):
        assert len({(cell.recipe, cell.seed) for cell in rows[begin:end]}) == 1
        assert end - begin > 1


def test_no_gpu_is_chosen_where_there_is_none() -> None:
    assert gpus("cpu") == [] and gpus(None) == []


def test_cached_and_jobs_exclude_each_other(run: Any, model_folder: Any, text_file: Path) -> None:
    words = ("lab", model_folder("llama"), "--eval-data", text_file, "--cached", "--jobs", 2)
    code, _, err = run(*words)
    assert code == 2 and "--cached" in err
