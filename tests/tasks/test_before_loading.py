"""Bad data is named before any model loads, and a task file may bring its data along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import offsite.exchange.offer
import offsite.model.stored
from offsite.lab.experiment import read_experiment
from tests.support import Run

TASK = """name = "mine"
kind = "multiple-choice"
prompt = "{question}"
choices = "choices"
answer = "label"
labels = ["a", "b"]
"""
GOOD = {"question": "who sat", "choices": ["the dog", "a log"], "label": "a"}
BAD = {
    "column": ({"question": "x", "label": "a"}, "has no column 'choices'"),
    "label": (
        {**GOOD, "label": "c"},
        "unknown label in its column 'label'; it must be one of a, b",
    ),
    "length": ({**GOOD, "question": "sat " * 200}, "the model reads 128 at once"),
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A task file with data of its own."""
    path = tmp_path / "mine.toml"
    path.write_text(TASK + 'train = "train.jsonl"\ntest = "test.jsonl"\n')
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 4)
    return path


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_stops_every_command_before_a_model_loads(
    kind: str, run: Run, model_folder: Any, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = mine.parent, model_folder("llama")
    assert run("offer", model, "--out", folder / "offer", "--keep", 1)[0] == 0
    row, message = BAD[kind]
    bad = folder / "bad.jsonl"
    bad.write_text(f"{json.dumps(GOOD)}\n{json.dumps(row)}\n")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(offsite.model.stored.StoredModel, "tensors", refuse)
    monkeypatch.setattr(offsite.model.stored.StoredModel, "source", refuse)
    monkeypatch.setattr(offsite.exchange.offer, "load_tensors", refuse)
    experiment = folder / "experiment.toml"
    experiment.write_text(
        f'models = ["{model}"]\n[recipes]\nnone = []\n[[tasks]]\ntask = "mine.toml"\n'
        'data = "bad.jsonl"\n'
    )
    told = ("--task", mine, "--data", bad)
    commands: list[tuple[object, ...]] = [
        ("offer", model, "--out", folder / "new", "--keep", 1, *told),
        ("tune", folder / "offer", "--out", folder / "delta", *told),
        ("score", model, *told),
        ("score", folder / "offer", *told),
        ("lab", model, "--keep", 1, "--out", folder / "lab", *told),
        ("lab", experiment, "--out", folder / "lab"),
    ]
    for command in commands:
        status, _, err = run(*command)
        assert status == 2 and f"Line 2 of '{bad}'" in err and message in err, (command, err)
    status, _, err = run("lab", experiment, "--steps", 3, "--skip-bad", "--out", folder / "lab")
    assert status == 2 and "so --steps, --skip-bad would have no effect" in err
    assert not (folder / "new").exists() and not (folder / "delta").exists()


def test_a_task_file_may_bring_its_data(run: Run, model_folder: Any, mine: Path) -> None:
    folder, model = mine.parent, model_folder("llama")
    status, _, err = run("offer", model, "--out", folder / "offer", "--keep", 1, "--task", mine)
    assert status == 0, err
    tune: tuple[object, ...]
    tune = ("tune", folder / "offer", "--out", folder / "delta", "--steps", 2, "--json")
    status, out, err = run(*tune, "--task", mine)
    assert status == 0 and json.loads(out)["metric"] == "accuracy", err
    status, out, err = run("score", model, "--task", mine, "--json", "--details")
    details = json.loads(out)["details"]["zero_shot"]
    assert len(details["items"]) == details["count"] == 4, err
    status, out, err = run(
        "lab", model, "--keep", 1, "--task", mine, "--steps", 1, "--out", folder / "lab", "--json"
    )
    assert status == 0 and "plug_in - emulator_tuned" in out, err
    (folder / "bare.toml").write_text(TASK)
    tune = ("tune", folder / "offer", "--out", folder / "other")
    for command in (tune, ("score", model), ("lab", model)):
        status, _, err = run(*command, "--task", folder / "bare.toml")
        assert status == 2 and "There is no data for the task 'mine'" in err, err


ODD = {
    "steps": ('steps = "ten"', "'steps' cannot take this"),
    "lr": ('lr = "1e-3"', "'lr' cannot take this"),
    "batch_size": ("batch_size = 2.5", "'batch_size' cannot take this"),
    "weight_decay": ("weight_decay = nan", "'weight_decay' cannot be nan"),
    "seed": ("seed = 3", "write seeds = "),
    "unknown": ("step = 3", "no training option 'step'"),
}
WRONG = {
    "seeds = [-1]": "seeds.0", "seeds = [99999999999]": "seeds.0", "seeds = [1.5]": "seeds.0",
    "seeds = [0, 0]": "hold one twice", "full_lr = -1": "learning rate of -1",
    "max_length = 0": "max_length", 'adapter = "x"': "'x' is not an adapter",
}  # fmt: skip


@pytest.mark.parametrize("case", [*ODD, *WRONG])
def test_odd_values_of_an_experiment_are_refused_when_read(
    case: str, run: Run, model_folder: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "offsite.model.checkpoint.Checkpoint.load", lambda *_, **__: pytest.fail("a model loaded")
    )
    options, message = ODD.get(case, ("", WRONG.get(case, "")))
    path = text_file.parent / "e.toml"
    path.write_text(
        f'models = ["{model_folder("llama")}"]\n{case if case in WRONG else ""}\n[options]\n'
        f'{options}\n[recipes]\na = []\n[[tasks]]\neval_data = "train.txt"\n'
    )
    status, _, err = run("lab", path, "--out", path.parent / "lab")
    assert status == 2 and message in err and "Traceback" not in err, err


def test_a_calibration_task_lies_beside_its_experiment(model_folder: Any, mine: Path) -> None:
    path = mine.parent / "e.toml"
    path.write_text(
        f'models = ["{model_folder("llama")}"]\ncalibration_task = "mine.toml"\n[recipes]\na = []'
        '\n[[tasks]]\ntask = "mine.toml"\n'
    )
    assert read_experiment(path)[0].calibration_task == str(mine)


def test_the_harness_reads_as_much_at_once_as_is_asked(
    run: Run, model_folder: Any, text_file: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    score = ("score", model_folder("llama"), "--data", text_file, "--harness", "--json")
    found = []
    for words in ((), ("--max-length", 16, "--batch-size", 3)):
        status, out, err = run(*score, *words)
        assert status == 0, err
        found.append(json.loads(out))
    assert [one["max_length"] for one in found] == [None, 16]
    assert len({one["scores"]["zero_shot"] for one in found}) == 2
    status, _, err = run(*score, "--max-length", 4096)
    assert status == 2 and "use 2 to 128" in err


def test_tasks_of_the_harness_by_name(run: Run, model_folder: Any, text_file: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    model = model_folder("llama")
    status, _, err = run("score", model, "--harness-task", "arc_easy")
    assert status == 2 and "could not get the data of its task 'arc_easy'" in err
    assert "needs a network" in err and "Traceback" not in err
    status, _, err = run("score", model, "--harness-task", "arc_easy", "--data", text_file)
    assert status == 2 and "has no effect" in err
