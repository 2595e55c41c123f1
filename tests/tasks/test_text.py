"""Plain text and completions: what shares a row, what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE
from offsite.tasks.data import rows_of
from offsite.tasks.text.causal import CausalText
from offsite.tasks.text.cross_entropy import token_losses
from offsite.tasks.text.documents import read_documents
from tests.support.models import LANGUAGE, language_model

PAIRS = [("the cat", " sat on the mat"), ("a bird", " sang"), ("who sat", " the dog on a log")]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", LANGUAGE)
def test_examples_that_share_a_row_do_not_see_each_other(
    family: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = language_model(family)
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS]
    data = write(tmp_path / "a.jsonl", rows)
    model.train()
    packed = rows_of(CausalText(64), data, tokenizer, model)
    assert model.training and len(packed) == (3 if family in ("opt", "bloom") else 1)
    model.eval()
    losses = []
    with torch.no_grad():
        for prompt, answer in PAIRS:
            start = tokenizer(prompt)["input_ids"]
            ids = torch.tensor([[*start, *tokenizer(answer)["input_ids"], 0]])
            labels = torch.where(torch.arange(ids.shape[1]) < len(start), IGNORE, ids)
            losses += token_losses(model, {"input_ids": ids, "labels": labels}).tolist()
    found = CausalText(64).evaluate(model, packed)
    assert found.count == len(losses)
    assert found.value == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    alone = CausalText(16).evaluate(model, rows_of(CausalText(16), data, tokenizer, model))
    assert sum(alone.weights) == alone.count and len(alone.weights) == len(alone.items) > 1
    parts = zip(alone.items, alone.weights, strict=True)
    assert alone.value == pytest.approx(sum(item * tokens for item, tokens in parts) / alone.count)


def test_what_a_file_holds_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    path.write_text('{"text": "the cat"}\n', encoding="utf-8-sig")
    assert [d.text for d in read_documents(path)] == ["the cat"]
    plain = tmp_path / "a.txt"
    plain.write_text("the dog", encoding="utf-8-sig")
    assert [d.text for d in read_documents(plain)] == ["the dog"]
    for name in ("a.csv", "a.TSV", "a.parquet"):
        (tmp_path / name).write_text("secret")
        with pytest.raises(OffsiteError, match=f"{name}' is a table.*jsonl") as caught:
            read_documents(tmp_path / name)
        assert "secret" not in str(caught.value)


def test_windows_of_plain_text_count_alike(tokenizer: Any, text_file: Path) -> None:
    model = language_model("gpt2")
    found = CausalText(64).evaluate(model, rows_of(CausalText(64), text_file, tokenizer, model))
    assert found.weights == () and len(found.items) > 1
    assert found.value == pytest.approx(sum(found.items) / len(found.items))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": "secret \\ud800"}'])
def test_odd_json_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + line)
    with pytest.raises(OffsiteError, match=r"^Line 2 of ") as caught:
        read_documents(path)
    assert "secret" not in str(caught.value)


def test_a_task_loads_a_file_in_one_call(tokenizer: Any, text_file: Path) -> None:
    task, model = CausalText(32), language_model("llama")
    loaded: Any = task.load(text_file, tokenizer, model)
    rows = rows_of(task, text_file, tokenizer, model)
    assert len(loaded) == len(rows) > 1
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(loaded, rows, strict=True)
    )
