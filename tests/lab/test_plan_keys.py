"""A cached cell must not outlive what it was made from."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from offsite.compress import LayerReplace
from offsite.compress.recipe import Recipe
from offsite.lab.cells import Cell
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.model.layers import Harmonizer
from offsite.model.split import Positions
from offsite.tasks.source import Source


def test_a_learned_folder_counts_by_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "learned"
    folder.mkdir()
    recipe = Recipe((LayerReplace(alpha=0.5, learned=str(folder)),))
    (folder / "learned.json").write_text("{}", encoding="utf-8")
    before = recipe.key(0)
    (folder / "learned.json").write_text("{ }", encoding="utf-8")
    assert recipe.key(0) != before
    assert str(folder) not in str(before)


def test_a_folder_of_pictures_counts_by_what_it_holds(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    (first / "cat").mkdir(parents=True)
    (first / "cat" / "1.png").write_bytes(b"1")
    before = Source.of(first).identity()
    shutil.copytree(first, second, copy_function=shutil.copyfile)  # a copy has other times
    os.utime(second / "cat" / "1.png", (1, 1))
    (second / ".DS_Store").write_bytes(b"x")
    assert Source.of(second).identity() == before
    assert Source.of(f"{second}:test").identity() == f"{before}:test"
    (second / "cat" / "1.png").write_bytes(b"2")
    assert Source.of(second).identity() != before


def test_every_layer_replace_step_has_its_own_pass(model_folder: Any, text_file: Path) -> None:
    first = LayerReplace(alpha=0.8, rank=3, steps=1, batch_size=2)
    recipe = Recipe((first, replace(first, alpha=0.2, rank=5)), Positions((0,)))
    plan = Plan(
        model=str(model_folder("llama")), eval_data=str(text_file), calibration=str(text_file),
        max_length=32, recipes={"two": recipe},
    )  # fmt: skip
    lab = Lab(plan, text_file.parent / "lab", "cpu")
    made = lab.emulator("two", 0).offer
    ranks = {m.spec.rank for m in made.model.modules() if isinstance(m, Harmonizer)}
    assert ranks == {3, 5}


def lab_name(model: Path, data: Path, task: str = "text") -> str:
    """The name of one cell, which every cell of the same plan shares a part of."""
    plan = Plan(model=str(model), eval_data=str(data), data=str(data), task=task, max_length=32)
    return Lab(plan, data.parent / "lab", "cpu").path(Cell("zero_shot")).stem


def changed(path: Path, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))


def test_a_cell_counts_what_config_and_tokenizer_hold(model_folder: Any, text_file: Path) -> None:
    model = model_folder("llama")
    names = [lab_name(model, text_file)]
    moved = model.rename(model.parent / "moved")
    assert lab_name(moved, text_file) == names[0]
    changed(moved / "config.json", "transformers_version", "4.0.0")
    assert lab_name(moved, text_file) == names[0]
    rope = {"rope_theta": 500.0, "rope_type": "default"}
    changed(moved / "config.json", "rope_parameters", rope)
    names.append(lab_name(moved, text_file))
    core = json.loads((moved / "tokenizer.json").read_text())["model"]
    changed(moved / "tokenizer.json", "model", {**core, "merges": core["merges"][:-1]})
    names.append(lab_name(moved, text_file))
    assert len(set(names)) == 3


def test_a_task_file_counts_by_what_it_says(model_folder: Any, tmp_path: Path) -> None:
    model, data, task = model_folder("llama"), tmp_path / "d.jsonl", tmp_path / "mine.toml"
    data.write_text('{"question": "who sat", "label": "a"}\n' * 4)
    said = 'name = "mine"\nkind = "multiple-choice"\nprompt = "{question}"\nanswer = "label"\n'
    said += 'choices = ["the dog", "a log"]\nlabels = ["a", "b"]\n'
    task.write_text(said)
    before = lab_name(model, data, str(task))
    other = tmp_path / "other.toml"
    other.write_text(f"# the same\n{said}")
    assert lab_name(model, data, str(other)) == before
    task.write_text(said.replace("a log", "a cat"))
    assert lab_name(model, data, str(task)) != before
