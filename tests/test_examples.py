"""The scripts under ``examples/``, each run on a tiny model from offer to plugged model."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from offsite.model.stored import model_fingerprint
from tests.support import Run
from tests.support.models import TEXT, classifier, language_model
from tests.support.pictures import image_processor, write_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = EXAMPLES / "table"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|end|>\n{% endfor %}"
TALK = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]


@pytest.fixture
def world(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a language model, a picture model, and private data of each kind."""
    language_model("llama").save_pretrained(tmp_path / "model")
    speaking = copy.deepcopy(tokenizer)
    speaking.chat_template = TEMPLATE
    speaking.save_pretrained(tmp_path / "model")
    classifier("vit").save_pretrained(tmp_path / "vision")
    image_processor().save_pretrained(tmp_path / "vision")
    write_folder(tmp_path)
    (tmp_path / "private.txt").write_text(TEXT)
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(name: str) -> dict[str, Callable[..., Any]]:
    """The functions of a script."""
    return runpy.run_path(str(EXAMPLES / name))


def exchange(owner: str, tuner: str, model: str, *data: Path | str) -> None:
    """Offer, tune and plug; the tuned model differs from the one it was made of."""
    script(f"{owner}/owner.py")["offer"](model, "offer")
    script(f"{tuner}/tuner.py")["tune"]("offer", *map(str, data), "delta", steps=2)
    script(f"{owner}/owner.py")["plug"](model, "delta", "tuned")
    auto = transformers.AutoModelForCausalLM
    if model == "vision":
        auto = transformers.AutoModelForImageClassification
    before, after = (auto.from_pretrained(name) for name in (model, "tuned"))
    assert model_fingerprint(before) != model_fingerprint(after)


@pytest.mark.parametrize(
    ("owner", "tuner", "model", "data"),
    [
        ("text", "text", "model", ["private.txt"]),
        ("chat", "chat", "model", ["chat.jsonl"]),
        ("pictures", "pictures", "vision", ["pictures"]),
        ("table", "table", "model", [TABLE / "task.toml", TABLE / "reports.csv"]),
        ("text", "peft", "model", ["private.txt"]),
    ],
    ids=["text", "chat", "pictures", "table", "peft"],
)
def test_an_exchange_by_the_scripts(
    owner: str, tuner: str, model: str, data: list[Path | str], world: Path
) -> None:
    exchange(owner, tuner, model, *data)


def test_several_deltas_are_served(world: Path, run: Run) -> None:
    for name in ("a", "b"):
        script("text/owner.py")["offer"]("model", name)
        script("text/tuner.py")["tune"](name, "private.txt", f"delta-{name}", steps=2)
        words = ("--record", f"{name}.record.json", "--as-adapter", "--out", f"plugged-{name}")
        status, _, err = run("plug", "model", f"delta-{name}", *words)
        assert status == 0, err
    answers = script("serving/owner.py")["serve"]("model", "the cat", "plugged-a", "plugged-b")
    assert list(answers) == ["the plain model", "plugged-a", "plugged-b", "all"]


def test_every_example_is_listed_and_run() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for folder in (path for path in EXAMPLES.iterdir() if path.is_dir()):
        assert f"[`{folder.name}`]({folder.name})" in listed
