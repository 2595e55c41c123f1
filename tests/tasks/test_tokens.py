"""What a tokenizer does by itself: rows hold its convention, and an answer is its own ids."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

from offsite.audit.suspect import tokenizer_findings
from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE
from offsite.scores.harness import harness_scores
from offsite.tasks import load_task
from offsite.tasks.data import TaskData, rows_of
from offsite.tasks.source import Source
from offsite.tasks.text.causal import CausalText
from offsite.tasks.text.tokens import Convention, encode, encode_after, without_end
from tests.support.models import language_model

BEGIN, END = "the", "dog"  # two tokens of the vocabulary play the begin and the end token
TEMPLATES = {
    "plain": "$A",
    "begin": f"{BEGIN} $A",
    "end": f"$A {END}",
    "both": f"{BEGIN} $A {END}",
}


@pytest.fixture(params=TEMPLATES)
def words(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """A tokenizer of each convention: nothing around a text, a begin token, an end token, both."""
    made = copy.deepcopy(tokenizer)
    special = [(token, made.convert_tokens_to_ids(token)) for token in (BEGIN, END)]
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single=TEMPLATES[request.param],
        pair=f"{TEMPLATES[request.param]} $B:1",
        special_tokens=special,
    )
    made.convention = request.param
    return made


def around(words: Any) -> tuple[list[int], list[int]]:
    """The ids that the convention says, by hand."""
    begin, end = words.convert_tokens_to_ids([BEGIN, END])
    return (
        [begin] if words.convention in ("begin", "both") else [],
        [end] if words.convention in ("end", "both") else [words.eos_token_id],
    )


def plain(words: Any, text: str) -> list[int]:
    return list(words(text, add_special_tokens=False)["input_ids"])


def test_a_convention_is_found_by_trying(words: Any) -> None:
    begin, end = around(words)
    assert Convention.of(words) == Convention(tuple(begin), tuple(end))
    assert without_end(words)("a cat")["input_ids"] == begin + plain(words, "a cat")


def test_completions_begin_and_end_as_the_tokenizer_does(words: Any, tmp_path: Path) -> None:
    begin, end = around(words)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a cat sat ", "completion": "on a log"}))
    row = rows_of(CausalText(64), path, words, language_model("llama"))[0]
    ids = row["input_ids"].tolist()
    assert ids == begin + plain(words, "a cat sat on a log") + end
    learnt = [label for label in row["labels"].tolist() if label != IGNORE]
    assert words.decode(learnt[: -len(end)]) == " on a log" and learnt[-len(end) :] == end
    short = rows_of(CausalText(6), path, words, language_model("llama"))[0]
    assert len(short["input_ids"]) == 6 and short["input_ids"].tolist()[: len(begin)] == begin


def test_windows_begin_as_the_tokenizer_does(words: Any, tmp_path: Path) -> None:
    begin, end = around(words)
    path = tmp_path / "a.jsonl"
    texts = ["a cat sat on a log", "a bird sang in a tree", "a mat"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = rows_of(CausalText(7), path, words, language_model("llama"))
    learnt: list[int] = []
    for index in range(len(rows)):
        ids, labels = rows[index]["input_ids"].tolist(), rows[index]["labels"].tolist()
        assert len(ids) == 7 and ids[: len(begin)] == begin
        assert labels[: len(begin)] == [IGNORE] * len(begin)
        learnt += [label for label in labels if label != IGNORE]
    stream = [token for text in texts for token in (*plain(words, text), *end)]
    assert learnt == stream[: len(learnt)] and len(stream) - len(learnt) < 7


def test_what_stands_there_already_is_not_added_again(words: Any, tmp_path: Path) -> None:
    begin, end = around(words)
    before, after = words.decode(begin), words.decode(end)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": f"{before} a cat", "completion": f" sat{after}"}))
    row = rows_of(CausalText(64), path, words, language_model("llama"))[0]
    ids = row["input_ids"].tolist()
    assert ids == begin + plain(words, " a cat sat") + end
    path.write_text((json.dumps({"text": f"{before} a cat sat{after}"}) + "\n") * 2)
    row = rows_of(CausalText(len(ids)), path, words, language_model("llama"))[0]
    assert row["input_ids"].tolist() == ids
    assert (row["labels"] == IGNORE).tolist() == [i < len(begin) for i in range(len(ids))]


@torch.no_grad()
def test_choices_score_as_by_the_harness(words: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    path = tmp_path / "q.jsonl"
    rows = [
        {"question": "where is a cat", "choices": ["on a mat", "a log in a tree"], "answer": 0},
        {"question": "who sang", "choices": ["a log", "a bird sang"], "answer": 1},
        {"question": "a log", "choices": ["on", "sat on a log while"], "answer": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, task = language_model("llama"), load_task("arc_easy")
    _, prompt, answer = task.encode(task.read(path)[0], words, 99)  # type: ignore[attr-defined]
    assert prompt == around(words)[0] + plain(words, "Question: where is a cat\nAnswer:")
    assert words.decode(answer) == " on a mat"
    ours = task.evaluate(model, rows_of(task, path, words, model))
    theirs = harness_scores(model, words, {"t": TaskData(task, Source.of(path))})["t"]
    assert ours.items == theirs.items
    assert ours.extra["accuracy_norm"] == theirs.extra["accuracy_norm"]


def test_an_answer_is_its_own_ids_where_a_token_would_reach_over_the_cut(tokenizer: Any) -> None:
    whole = plain(tokenizer, "the")
    assert whole != plain(tokenizer, "t") + plain(tokenizer, "he")  # "the" is one token
    start, (tail,) = encode_after(tokenizer, "t", ["he"], "Line 1")
    assert tokenizer.decode(start) == "t" and tokenizer.decode(tail) == "he"


@pytest.mark.parametrize("row", [{"text": "a <|user|>"}, {"prompt": "a", "completion": "<|user|>"}])
def test_a_token_beyond_the_embedding_is_named(row: Any, tokenizer: Any, tmp_path: Path) -> None:
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["<|user|>"], special_tokens=True)
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    data = TaskData(CausalText(32), Source.of(tmp_path / "a.jsonl"))
    with pytest.raises(OffsiteError, match=r"'<\|user\|>' the id 295, .* embedding has 295 rows"):
        data.prepare(grown, language_model("llama", vocab_size=295).config)


def test_a_text_of_unknown_tokens_is_refused(tmp_path: Path) -> None:
    """The tokenizer of another language turns every word into the same token."""
    words = {"<unk>": 0, "the": 1, "dog": 2}
    core = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    config = language_model("llama").config
    for text, known in (("the dog sat", True), ("ein Hund sass, the dog", False)):
        (tmp_path / "a.txt").write_text(text)
        data = TaskData(CausalText(32), Source.of(tmp_path / "a.txt"))
        if known:
            data.prepare(foreign, config)
            continue
        with pytest.raises(OffsiteError, match="does not know 4 of the 6 tokens"):
            data.prepare(foreign, config)


def test_a_tokenizer_that_fails_is_refused_without_quoting_the_text() -> None:
    """A legal tokenizer.json may lack the token that it gives to unknown words."""
    model = tokenizers.models.WordPiece(vocab={"a": 0}, unk_token="[UNK]")
    broken = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model))
    with pytest.raises(OffsiteError, match=r"cannot read the text \(Exception\)") as found:
        encode(broken, "secret")
    assert "secret" not in str(found.value) and found.value.__cause__ is None
    with pytest.raises(OffsiteError, match="cannot read the text"):
        list(tokenizer_findings(broken))
