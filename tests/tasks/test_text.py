"""Plain text and completions: what shares a row, what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import LANGUAGE, language_model
from offsite.tasks.text import IGNORE, CausalText, token_losses

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
    packed = CausalText(64).load(data, tokenizer, model)
    assert model.training and len(packed) == (3 if family in ("opt", "bloom") else 1)  # type: ignore[arg-type]
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
