"""lm-eval and this package give the same score to every single question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offsite.compress.drop import Drop
from offsite.deltas.addition.bottleneck import Bottleneck
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.errors import MissingExtraError, OffsiteError
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.scores.harness import harness_scores
from offsite.tasks import load_task
from offsite.tasks.data import TaskData, rows_of
from offsite.tasks.source import Source
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import TEXT, language_model

WORDS = TEXT.split()


def data(task: str, path: Path) -> TaskData:
    return TaskData(load_task(task), Source.of(path))


def made_up(path: Path, count: int) -> Path:
    """Questions without sense, with choices of very different lengths."""
    rows = [
        {
            "question": " ".join(WORDS[i : i + 3 + i % 5]),
            "choices": [" ".join(WORDS[i + j : i + j * 2 + 1]) for j in range(1, 4 + i % 2)],
            "answer": i % 3,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_question_is_scored_as_lm_eval_scores_it(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    model, source = language_model("llama"), made_up(tmp_path / "q.jsonl", 40)
    names = ("arc_easy", "openbookqa")
    found = harness_scores(model, tokenizer, {n: data(n, source) for n in names})
    for name in names:
        task = load_task(name)
        ours = task.evaluate(model, rows_of(task, source, tokenizer, model, train=False))
        theirs = found[name]
        assert ours.items == theirs.items and len(ours.items) == 40
        assert (ours.metric, ours.value, ours.count) == (theirs.metric, theirs.value, theirs.count)
        assert ours.stderr == pytest.approx(theirs.stderr)
        assert ours.extra["accuracy_norm"] == theirs.extra["accuracy_norm"]
        assert 0 < ours.value < 1


def test_open_questions_and_perplexity_go_through_the_harness(
    tokenizer: Any, tmp_path: Path, text_file: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    model = language_model("llama")
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"qText": "who sat", "answers": ["the dog", "A cat"]}] * 3))
    found = harness_scores(
        model,
        tokenizer,
        {"open": data("webquestions", path), "text": data("text", text_file)},
    )
    assert found["open"].metric == "exact_match" and found["open"].count == 3
    assert found["text"].metric == "word_perplexity" and found["text"].value > 1
    assert found["text"].extra["byte_perplexity"] > 1 and not found["text"].higher_is_better


def test_emulator_tuned_and_plugged_models_go_in_as_they_are(
    tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    model, task = language_model("llama"), load_task("arc_easy")
    source = made_up(tmp_path / "q.jsonl", 12)
    offer, record = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer, task=task)
    options = TrainOptions(steps=3, batch_size=2, lr=1e-2)
    for method in (LoRA(rank=2), Bottleneck(size=4)):
        tuned = run_tune(offer, source, method, options=options, task=task)
        plugged = plug(model, tuned.delta, record)
        for given in (offer.model, tuned.model, plugged):
            ours = task.evaluate(given, rows_of(task, source, tokenizer, given, train=False))
            theirs = harness_scores(
                given, tokenizer, {"t": TaskData(task, Source.of(source))}, batch_size=8
            )["t"]
            assert ours.items == theirs.items


def test_what_the_harness_cannot_do_is_said(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "lm_eval", None)
        with pytest.raises(MissingExtraError, match=r"offsite\[eval\]"):
            harness_scores(language_model("llama"), tokenizer, ["piqa"])
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    with pytest.raises(OffsiteError, match=r"no task 'arc_esy' \(near it: arc_easy"):
        harness_scores(language_model("llama"), tokenizer, ["arc_esy"])
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "x"}]}')
    with pytest.raises(OffsiteError, match="cannot score the task 'chat'"):
        harness_scores(
            language_model("llama"),
            tokenizer,
            {"chat": data("chat", path)},
        )
