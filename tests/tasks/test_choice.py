"""Multiple choice and open questions: reading, training rows, scoring, against slow references."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.model.checkpoint import load_processor
from offsite.model.replay import IGNORE
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks import load_task, task_names
from offsite.tasks.data import TaskData, read_data, rows_of
from offsite.tasks.questions.likelihood import (
    Question,
    by_tokens,
    continues,
    pads,
    scores_with_cache,
    scores_without_cache,
    tokens,
)
from offsite.tasks.questions.open_question import normal
from offsite.tasks.source import Source
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import LANGUAGE, language_model

ROWS: list[dict[str, Any]] = [
    {"question": "where is the cat", "choices": ["on the mat", "a log in a tree"], "answer": 0},
    {"question": "who sang", "choices": ["a dog", "the bird sang", "mat"], "answer": 1},
    {"question": "the log", "choices": ["on", "sat on the log while"], "answer": 1},
    {"question": "who sat", "choices": ["x", "the dog", "dog"], "answer": 2},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "questions.jsonl", ROWS)


def slow_score(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """The log-likelihood of one choice, token by token."""
    start = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt} {choice}")["input_ids"]
    total = 0.0
    for place in range(len(start), len(ids)):
        logits = model(input_ids=torch.tensor([ids[:place]]), use_cache=False).logits[0, -1]
        total += logits.log_softmax(-1)[ids[place]].item()
    return total


@torch.no_grad()
@pytest.mark.parametrize("family", LANGUAGE)
def test_accuracy_equals_a_slow_obvious_reference(
    family: str, tokenizer: Any, questions: Path
) -> None:
    model, task = language_model(family), load_task("arc_easy")
    data = rows_of(task, questions, tokenizer, model, train=False)
    asked = data.questions
    expected: list[list[float]] = [
        [
            slow_score(model, tokenizer, f"Question: {r['question']}\nAnswer:", c)
            for c in r["choices"]
        ]
        for r in ROWS
    ]
    cached = [scores_with_cache(model, [q])[0] for q in asked]
    ways = [cached, scores_without_cache(model, asked)]
    longest, shortest = (f(asked, key=lambda q: len(q.prompt)) for f in (max, min))
    assert len(longest.prompt) > len(shortest.prompt)
    assert pads(model, longest, shortest)
    ways.append(scores_with_cache(model, asked))
    for given in ways:
        for a, b in zip(given, expected, strict=True):
            assert a == pytest.approx(b, abs=1e-3)
    assert continues(model, asked[0].prompt)
    for size in (1, 4, 64):
        result = task.evaluate(model, data, batch_size=size)
        right = [
            float(max(range(len(s)), key=s.__getitem__) == r["answer"])
            for s, r in zip(expected, ROWS, strict=True)
        ]
        norm = [
            float(max(range(len(s)), key=lambda i: s[i] / len(r["choices"][i])) == r["answer"])
            for s, r in zip(expected, ROWS, strict=True)
        ]
        assert result.items == tuple(right) and result.value == sum(right) / 4
        assert result.extra["accuracy_norm"] == sum(norm) / 4
        assert (result.metric, result.count, result.higher_is_better) == ("accuracy", 4, True)


def test_training_rows_carry_the_right_answer_alone(tokenizer: Any, questions: Path) -> None:
    model, task = language_model("llama"), load_task("arc_easy", max_length=64)
    rows = rows_of(task, questions, tokenizer, model, train=True)
    texts = []
    for index in range(len(rows)):
        labels = rows[index]["labels"]
        texts += tokenizer.decode(labels[labels != IGNORE]).split("<|end|>")[:-1]
    assert sorted(texts) == sorted(" " + row["choices"][row["answer"]] for row in ROWS)
    assert max(len(rows[i]["input_ids"]) for i in range(len(rows))) <= 64


def test_the_whole_exchange_learns_the_answers(tokenizer: Any, questions: Path) -> None:
    model, task = language_model("llama"), load_task("arc_easy")
    offer, record = make_offer(
        model, adapter=ends(1, 1), recipe=[Drop(keep=4)], processor=tokenizer, task=task
    )
    assert offer.manifest.task == "arc_easy"
    options = TrainOptions(steps=60, batch_size=4, lr=1e-2)
    tuned = run_tune(offer, questions, options=options, task=task, eval_data=questions)
    assert tuned.evaluation is not None
    assert tuned.evaluation.extra["accuracy_norm"] >= 0.75  # a tiny frozen head says it softly
    losses = [point["eval_loss"] for point in tuned.history.points if "eval_loss" in point]
    assert losses[-1] < losses[0] - 0.1
    plugged = plug(model, tuned.delta, record)
    rows = rows_of(task, questions, tokenizer, plugged, train=False)
    assert task.evaluate(plugged, rows).items == tuned.evaluation.items  # nothing was dropped


def scored(family: str, tokenizer: Any, questions: Path) -> tuple[Any, Any, Any, Any]:
    """A model of a family, a task, its data, and the scores of their questions."""
    model, task = language_model(family), load_task("arc_easy")
    data = rows_of(task, questions, tokenizer, model, train=False)
    return model, task, data, task.evaluate(model, data).items


def test_a_model_that_cannot_keep_keys_is_scored_all_the_same(
    tokenizer: Any, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task, data, expected = scored("llama", tokenizer, questions)
    model.model.layers[3].self_attn.layer_idx = 2  # one cache slot twice: silently wrong
    assert not continues(model, data.questions[0].prompt)
    assert task.evaluate(model, data).items == expected


def test_a_model_that_does_not_heed_padding_is_scored_all_the_same(
    tokenizer: Any, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task, data, expected = scored("gpt2", tokenizer, questions)
    asked = sorted(data.questions, key=lambda q: -len(q.prompt))
    assert pads(model, asked[0], asked[-1])
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda attention_mask=None, position_ids=None, **more: forward(**more)
    )
    assert not pads(model, asked[0], asked[-1])
    assert task.evaluate(model, data).items == expected


def test_a_batch_takes_the_tokens_of_its_choices_with_their_prompts() -> None:
    sizes = [(40, 2, 3), (12, 4, 5), (12, 4, 5), (3, 4, 1), (2, 2, 1), (2, 2, 1)]
    asked = [
        Question([1] * prompt, [[2] * choice for _ in range(count)], 0, (1,) * count)
        for prompt, count, choice in sizes
    ]
    parts = list(by_tokens(asked, range(len(asked)), batch_size=4))
    assert [index for part in parts for index in part] == list(range(len(asked)))
    for part in parts:
        first = asked[part[0]]
        room = 4 * (len(first.prompt) + len(first.choices[0]))
        assert len(part) == 1 or sum(tokens(asked[index]) for index in part) <= room
    assert [len(part) for part in parts] == [3, 2, 1]


def test_open_questions_are_generated_greedily(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"qText": "who sat", "answers": ["The Dog.", "a cat"]}] * 3
    path = tmp_path / "q.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    model, task = language_model("llama"), load_task("webquestions")
    offer, _ = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer, task=task)
    before = task.evaluate(model, rows_of(task, path, tokenizer, model, train=False))
    assert (before.metric, before.value, before.count) == ("exact_match", 0.0, 3)
    options = TrainOptions(steps=40, batch_size=3, lr=1e-2)
    tuned = run_tune(offer, path, options=options, task=task, eval_data=path)
    assert tuned.evaluation is not None and tuned.evaluation.items == (1.0, 1.0, 1.0)
    get = tuned.model.model.layers  # type: ignore[union-attr]
    get[1].self_attn.layer_idx = 0  # type: ignore[index, union-attr]
    again = task.evaluate(tuned.model, rows_of(task, path, tokenizer, tuned.model, train=False))
    assert again.value == 1.0
    assert normal("  The, dog!\n") == "the dog"


def test_classification_as_text_reads_headerless_tsv(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text('a "good film\t1\nthe log\t0\n')
    task = load_task("sst2")
    found = task.read(path)
    assert [q.answer for q in found] == [1, 0] and found[0].choices == ("negative", "positive")
    assert found[0].prompt.startswith('a "good film\nQuestion:')
    path.write_text("a film\t1\nthe log\t2\n")
    with pytest.raises(OffsiteError, match=r"Line 2 of .*dev.tsv.* unknown label .* 0 to 1"):
        read_data(task, str(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["secret", "b"], "answer": 0}, r"Line 2 of .* no column 'question'"),
        ({"question": "secret", "answer": 0}, "no column 'choices'"),
        ({"question": "secret", "choices": ["a", "b"]}, "no column 'answer'"),
        ({"question": "secret", "choices": ["a", "b"], "answer": 2}, "unknown label"),
        ({"question": "secret", "choices": ["a", "b"], "answer": True}, "unknown label"),
        ({"question": "secret", "choices": ["a", "b"], "answer": "9" * 5000}, "unknown label"),
        ({"question": "secret", "choices": ["a", ""], "answer": 0}, "none of them empty"),
        ({"question": "x", "choices": ["secret"] * 2 + ["b"], "answer": 0}, "right choice twice"),
        ({"question": "secret", "choices": ["a\ud800", "b"], "answer": 0}, "surrogate"),
        ({"question": "secret", "choices": "ab", "answer": 0}, "list of texts"),
        ({"question": ["secret"], "choices": ["a", "b"], "answer": 0}, "needs text in"),
        (["secret"], "not a JSON object"),
    ],
)
def test_bad_rows_are_named_by_line_and_never_quoted(
    row: Any, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    with pytest.raises(OffsiteError, match=message) as caught:
        read_data(load_task("arc_easy"), str(path))
    assert "Line 2 of" in str(caught.value) and "secret" not in str(caught.value)


def test_labels_may_be_more_than_the_choices_of_a_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nkind = "multiple-choice"\nprompt = "{q}"\nchoices = "c"\n'
        'answer = "a"\nlabels = ["A", "B", "C"]\n'
    )
    rows = [{"q": "x", "c": ["yes", "no", "no"], "a": "A"}, {"q": "x", "c": ["s", "t"], "a": "B"}]
    found = load_task(file).read(write(tmp_path / "a.jsonl", rows))
    assert [question.answer for question in found] == [0, 1]
    rows[1]["a"] = "C"
    with pytest.raises(OffsiteError, match=r"Line 2 of .* unknown label .* one of A, B\."):
        read_data(load_task(file), str(write(tmp_path / "b.jsonl", rows)))


def test_choices_over_the_context_length_are_found_before_a_model_loads(
    tokenizer: Any, tmp_path: Path
) -> None:
    long = {"question": "the", "choices": ["a", "secret " * 200], "answer": 0}
    path = write(tmp_path / "long.jsonl", [ROWS[0], long])
    config = language_model("llama").config
    with pytest.raises(OffsiteError, match=r"Line 2 of .*the model reads 128 at once") as caught:
        TaskData(load_task("arc_easy"), Source.of(path)).prepare(tokenizer, config)
    assert "secret" not in str(caught.value)


def test_every_builtin_task_reads_its_public_data(shared: Path) -> None:
    tokenizer = load_processor(shared / "models" / "bookling-31m", "text")
    files = {
        "arc_easy": "val.jsonl", "arc_challenge": "val.jsonl", "openbookqa": "val.jsonl",
        "piqa": "val.jsonl", "csqa": "val.jsonl", "sciq": "val.jsonl", "sst2": "dev.tsv",
        "webquestions": "devtest.json",
    }  # fmt: skip
    assert {*files, "text", "chat", "image-classification"} == set(task_names())
    for name, file in files.items():
        task = load_task(name)
        read_data(task, str(shared / "data" / "qa" / name / file))
        assert task.name == name and task.default_source("train") is None
    dev = Source.of(shared / "data" / "qa" / "sst2" / "dev.tsv")
    TaskData(load_task("sst2"), dev).prepare(tokenizer, None)


def test_choices_that_one_tokenizer_cannot_tell_apart_are_refused(
    tokenizer: Any, tmp_path: Path
) -> None:
    """A score of two equal choices would measure their order."""
    words = copy.deepcopy(tokenizer)
    words._tokenizer.normalizer = normalizers.Lowercase()
    (tmp_path / "t.toml").write_text(
        'name="t"\nkind="multiple-choice"\nprompt="{q}"\nchoices="c"\nanswer="a"\n'
    )
    rows: list[Any] = [{"q": "who sat", "c": ["the DOG", "the dog", "a cat"], "a": 0}]
    task = load_task(tmp_path / "t.toml")
    source = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(OffsiteError, match=r"Line 1 .* into the same tokens") as caught:
        task.prepare(task.read(source), words, None)
    assert "dog" not in str(caught.value)
    rows[0]["a"] = 2  # two equal wrong choices leave the right one to be told
    assert task.prepare(task.read(write(tmp_path / "a.jsonl", rows)), words, None)
