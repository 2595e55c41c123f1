"""No number from no number: logits that are not numbers are never counted as an answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offsite.errors import OffsiteError
from offsite.scores.harness import harness_scores
from offsite.tasks import load_task
from offsite.tasks.data import TaskData, rows_of
from offsite.tasks.questions.open_question import is_right, normal, stop_tokens
from offsite.tasks.source import Source
from offsite.tasks.task import perplexity
from tests.support.models import classifier, language_model
from tests.support.pictures import image_processor

OPEN = 'name = "sacks"\nkind = "open"\nprompt = "{q}"\nanswer = "a"\n'
CHOICE = 'name = "sacks"\nkind = "multiple-choice"\nprompt = "{q}"\nchoices = "c"\nanswer = "n"\n'
ROW = {"q": "who sat", "a": "the dog", "c": ["the dog", "a cat"], "n": 0, "text": "the dog sat"}


def broken(model: Any) -> Any:
    """The model with a last norm that makes every logit not a number."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(math.inf)
    return model


@pytest.mark.parametrize("text", [OPEN, CHOICE, "text"])
@pytest.mark.parametrize("harness", [False, True])
def test_text(text: str, harness: bool, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    data = tmp_path / "a.jsonl"
    data.write_text((json.dumps({"text": ROW["text"]} if text == "text" else ROW) + "\n") * 3)
    task = load_task("text" if text == "text" else tmp_path / "t.toml")
    model = broken(language_model("llama"))
    if harness:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
        found = harness_scores(model, tokenizer, {"t": TaskData(task, Source.of(data))})["t"]
    else:
        found = task.evaluate(model, rows_of(task, data, tokenizer, model))
    assert math.isnan(found.value)


def test_a_perplexity_beyond_every_float_is_infinite(tokenizer: Any, text_file: Path) -> None:
    model, task = language_model("llama"), load_task("text", max_length=32)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    found = task.evaluate(model, TaskData(task, Source.of(text_file)).rows(tokenizer, model))
    assert found.value > 1000 and found.extra["perplexity"] == math.inf
    assert perplexity(2.0) == math.exp(2.0)


@pytest.mark.parametrize("text", [OPEN, CHOICE])
@pytest.mark.parametrize("harness", [False, True])
def test_infinite_logits(text: str, harness: bool, tokenizer: Any, tmp_path: Path) -> None:
    """Plus infinity is greedily chosen, but has no likelihood."""
    (tmp_path / "t.toml").write_text(text)
    (tmp_path / "a.jsonl").write_text((json.dumps(ROW) + "\n") * 3)
    task, model = load_task(tmp_path / "t.toml"), language_model("llama")
    with torch.no_grad():
        for parameter in (model.model.norm.weight, model.lm_head.weight):
            parameter.fill_(1e30)
    if harness:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
        given = {"t": TaskData(task, Source.of(tmp_path / "a.jsonl"))}
        found = harness_scores(model, tokenizer, given)["t"]
    else:
        found = task.evaluate(model, rows_of(task, tmp_path / "a.jsonl", tokenizer, model))
    assert math.isnan(found.value)


@pytest.mark.parametrize("harness", [False, True])
def test_choices_that_all_tie(harness: bool, tokenizer: Any, tmp_path: Path) -> None:
    """A model of zeros would score 1.0 here, because the right choice stands first."""
    (tmp_path / "t.toml").write_text(CHOICE)
    row = {**ROW, "c": ["dog", "cat"]}
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 3)
    task, model = load_task(tmp_path / "t.toml"), language_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(OffsiteError, match="the same likelihood"):
        if harness:
            pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
            given = {"t": TaskData(task, Source.of(tmp_path / "a.jsonl"))}
            harness_scores(model, tokenizer, given)
        task.evaluate(model, rows_of(task, tmp_path / "a.jsonl", tokenizer, model))


def test_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(4) % 3)
    task, model = load_task("image-classification"), broken(classifier("vit"))
    model.config.id2label = {0: "0", 1: "1", 2: "2"}
    rows = rows_of(task, tmp_path / "a.npz", image_processor(), model)
    assert math.isnan(task.evaluate(model, rows).value)


def test_an_answer_is_judged_by_what_it_says(tokenizer: Any) -> None:
    assert is_right(" The DOG. ", ["a cat", "the dog"])
    assert not is_right("", ["!!!"]) and normal("!!!") == "!!!"
    model = language_model("llama")
    assert stop_tokens(model, tokenizer) == {0}
    model.generation_config.eos_token_id = [5, 7]
    assert stop_tokens(model, tokenizer) == {0, 5, 7}
