"""Instruction data: only the assistant's turns are learnt, as the chat template writes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from offsite.tasks.chat.conversations import encode_chat
from offsite.tasks.data import read_data, rows_of
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import language_model

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "be a bird"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat on the mat"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "the dog"},
]


@pytest.fixture
def chatty(tokenizer: Any) -> Any:
    speaking = copy.deepcopy(tokenizer)
    speaking.chat_template = TEMPLATE
    return speaking


def test_labels_are_exactly_the_assistants_turns(chatty: Any) -> None:
    ids, labels = encode_chat(TALK, chatty, 128, "Line 1")
    text = chatty.decode(ids)
    assert text == chatty.apply_chat_template(TALK, tokenize=False)
    learnt = chatty.decode([label for label in labels if label != IGNORE])
    assert learnt == "sat on the mat<|end|>\nthe dog<|end|>\n"
    assert len(encode_chat(TALK, chatty, 40, "Line 1")[0]) == 40


def test_chats_tune_through_the_whole_path(chatty: Any, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text((json.dumps({"messages": TALK}) + "\n") * 3)
    model, task = language_model("llama"), load_task("chat", max_length=128)
    offer, _ = make_offer(model, recipe=[Drop(keep=1)], processor=chatty, task=task)
    rows = rows_of(task, path, chatty, offer.model, train=False)
    before = task.evaluate(offer.model, rows)
    tuned = run_tune(
        offer, path, options=TrainOptions(steps=20, lr=1e-2), task=task, eval_data=path
    )
    assert tuned.evaluation is not None and tuned.evaluation.value < before.value - 0.5
    assert before.metric == "loss" and before.extra["perplexity"] > 1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list"),
        ([{"role": "robot", "content": "secret"}], '"role"'),
        ([{"role": "user"}], '"content"'),
        ([{"role": "user", "content": "secret"}], "no message of the assistant"),
    ],
)
def test_bad_conversations_are_named_by_line(messages: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(OffsiteError, match=f"Line 1 of .*{message}") as caught:
        read_data(load_task("chat"), str(path))
    assert "secret" not in str(caught.value)


def test_templates_that_cannot_serve_are_refused(chatty: Any, tokenizer: Any) -> None:
    with pytest.raises(OffsiteError, match="no chat template"):
        encode_chat(TALK, tokenizer, 128, "Line 1")
    with pytest.raises(OffsiteError, match="Line 1 has no text of the assistant"):
        encode_chat(TALK, chatty, 10, "Line 1")
    chatty.chat_template = "{{ raise_exception('secret ' + messages[0].content) }}"
    with pytest.raises(OffsiteError, match="Line 1 is refused") as caught:
        encode_chat(TALK, chatty, 128, "Line 1")
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None
    chatty.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(OffsiteError, match="changes earlier turns"):
        encode_chat(TALK, chatty, 128, "Line 1")


def test_a_template_that_leaves_out_what_was_said_is_refused(chatty: Any) -> None:
    chatty.chat_template = TEMPLATE.replace(
        "in messages %}", "in messages if m.role != 'system' %}"
    )
    with pytest.raises(OffsiteError, match=r"a message of the system that .* leaves out") as caught:
        encode_chat(TALK, chatty, 128, "Line 1")
    assert "bird" not in str(caught.value)
    assert encode_chat(TALK[1:], chatty, 128, "Line 1")
    chatty.chat_template = TEMPLATE.replace("m.content", "m.content | trim")
    padded = [{**TALK[1], "content": " the cat\n"}, {**TALK[2], "content": "\nsat "}]
    labels = encode_chat(padded, chatty, 128, "Line 1")[1]
    assert chatty.decode([label for label in labels if label != IGNORE]) == "sat<|end|>\n"


def test_a_template_that_begins_every_answer_is_said_to(chatty: Any) -> None:
    """Models that reason begin an answer with a tag, which plain answers do not have."""
    chatty.chat_template = TEMPLATE.replace("[assistant]\n", "[assistant]\n<think>\n")
    with pytest.raises(OffsiteError, match=r"begins every answer with '<think>'") as caught:
        encode_chat(TALK[1:3], chatty, 128, "Line 1")
    assert "cat" not in str(caught.value)
    thought = [TALK[1], {"role": "assistant", "content": "<think>\nmat?</think>on the mat"}]
    labels = encode_chat(thought, chatty, 128, "Line 1")[1]
    learnt = chatty.decode([label for label in labels if label != IGNORE])
    assert learnt == "<think>\nmat?</think>on the mat<|end|>\n"
