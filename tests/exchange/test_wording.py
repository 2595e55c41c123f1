"""What of an offer is words: it is said, and the owner may leave it out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from offsite.exchange.wording import PARTS, Wording, parse_parts
from offsite.model.processor import PROBE
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from tests.support import Run
from tests.support.models import vision_model

SECRET = ("<|acme-zeus|>", "alice-notes", "ACME")


@pytest.fixture
def talkative(model_folder: Callable[..., Path]) -> Path:
    """A checkpoint whose tokenizer has private special tokens, a private word, and a template."""
    folder = model_folder("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|acme-zeus|>", "alice-notes"]})
    tokenizer.add_tokens(["kept word"])
    tokenizer.chat_template = (
        "ACME{% for m in messages %}<|acme-zeus|>{{ m['content'] }}{% endfor %}"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_offer_says_which_words_travel(talkative: Path, tmp_path: Path, run: Run) -> None:
    words = (str(talkative), "--adapter", "ends:1,1", "--keep", "1", "--device", "cpu")
    status, text, _ = run("offer", *words, "--out", str(tmp_path / "said"))
    assert status == 0
    assert "4 added tokens (<|end|>, <|acme-zeus|>, alice-notes, kept word)" in text
    assert "a chat template of" in text and "--leave-out" in text
    status, text, _ = run(
        "offer", *words, "--out", str(tmp_path / "silent"), "--leave-out", "added-tokens", "--json"
    )
    assert status == 0
    first = transformers.AutoTokenizer.from_pretrained(talkative).get_vocab()["<|acme-zeus|>"]
    assert json.loads(text)["words"] == {
        "added_tokens": ["<|end|>", f"<|added_{first}|>", f"<|added_{first + 1}|>", "kept word"],
        "chat_template": 0,
        "labels": [],
    }


def test_of_several_chat_templates_the_default_travels(
    talkative: Path, tmp_path: Path, run: Run
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(talkative)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}" * 99}
    tokenizer.save_pretrained(talkative)
    words = (str(talkative), "--adapter", "ends:1,1", "--keep", "1", "--device", "cpu")
    status, text, _ = run("offer", *words, "--out", str(tmp_path / "o"))
    assert status == 0 and "not sent: tool_use." in " ".join(text.split())
    sent = transformers.AutoTokenizer.from_pretrained(tmp_path / "o").chat_template
    assert sent == tokenizer.chat_template["default"]
    assert f"a chat template of {len(sent)} characters" in text


def test_inspect_says_which_words_came(talkative: Path, tmp_path: Path, run: Run) -> None:
    words = (str(talkative), "--adapter", "ends:1,1", "--keep", "1", "--device", "cpu")
    assert run("offer", *words, "--out", str(tmp_path / "o"))[0] == 0
    status, text, _ = run("inspect", str(tmp_path / "o"))
    flat = " ".join(text.split())
    assert status == 0 and "4 added tokens (<|end|>, <|acme-zeus|>, alice-notes, kept word)" in flat
    assert "a chat template of" in flat
    status, text, _ = run("inspect", str(tmp_path / "o"), "--json")
    assert json.loads(text)["words"]["added_tokens"][1] == "<|acme-zeus|>"


@pytest.mark.parametrize("part", ["chat-template", "added-tokens"])
def test_chats_need_the_template(part: str, talkative: Path, tmp_path: Path, run: Run) -> None:
    words = (str(talkative), "--adapter", "ends:1,1", "--keep", "1", "--device", "cpu")
    out = str(tmp_path / "o")
    status, _, err = run("offer", *words, "--out", out, "--task", "chat", "--leave-out", part)
    assert status == 2 and not (tmp_path / "o").exists()
    assert f"--leave-out {part} takes away the chat template, which --task chat needs" in err
    with pytest.raises(OffsiteError, match="which --task chat needs"):
        make_offer(talkative, task=load_task("chat"), leave_out=[part])
    assert parse_parts(["labels"], "chat") == {"labels"}


def test_tokens_and_templates_left_out_change_no_ids(talkative: Path, tmp_path: Path) -> None:
    before = transformers.AutoTokenizer.from_pretrained(talkative)
    made, _ = make_offer(talkative, adapter=ends(1, 1), recipe=[Drop(keep=1)], device="cpu",
                         leave_out=["added-tokens"])  # fmt: skip
    made.save(tmp_path / "offer")
    for path in (tmp_path / "offer").iterdir():
        assert not [word for word in SECRET if word.encode() in path.read_bytes()], path.name
    after = Offer.load(tmp_path / "offer").processor
    for text in (PROBE, "the cat kept word sat <|end|> on"):
        assert after(text)["input_ids"] == before(text)["input_ids"]
        assert after.decode(after(text)["input_ids"]) == before.decode(before(text)["input_ids"])
    ids = before("<|acme-zeus|>")["input_ids"]
    assert after(f"<|added_{ids[0]}|>")["input_ids"] == ids
    assert len(after) == len(before) and after.eos_token == "<|end|>"
    assert "alice-notes" in transformers.AutoTokenizer.from_pretrained(talkative).get_vocab()


def test_the_template_alone_can_be_left_out(talkative: Path, tmp_path: Path) -> None:
    made, _ = make_offer(talkative, adapter=ends(1, 1), recipe=[Drop(keep=1)], device="cpu",
                         leave_out=["chat-template"])  # fmt: skip
    made.save(tmp_path / "offer")
    found = Offer.load(tmp_path / "offer")
    assert found.processor.chat_template is None and "alice-notes" in found.processor.get_vocab()
    assert not any(b"ACME" in path.read_bytes() for path in (tmp_path / "offer").iterdir())


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    model = vision_model("vit")
    count = model.config.num_labels
    model.config.id2label = {index: f"patient {index}" for index in range(count)}
    model.config.label2id = {f"patient {index}": index for index in range(count)}
    task, processor = load_task("image-classification"), transformers.ViTImageProcessor()
    for left, names in (((), "patient "), (("labels",), "LABEL_")):
        made, _ = make_offer(model, adapter=ends(1, 1), task=task, processor=processor,
                             device="cpu", leave_out=left)  # fmt: skip
        made.save(folder := tmp_path / f"offer{len(left)}")
        loaded = Offer.load(folder).model
        assert loaded.config.id2label == {index: f"{names}{index}" for index in range(count)}
        labels = Wording.of(None, loaded.config).labels
        assert labels == (() if left else tuple(f"patient {index}" for index in range(count)))
    assert model.config.id2label[0] == "patient 0"  # the owner's model is as it was


def test_what_cannot_be_left_out_is_said() -> None:
    assert parse_parts(["labels"]) == {"labels"} and len(PARTS) == 3
    with pytest.raises(OffsiteError, match="use added-tokens, chat-template or labels"):
        parse_parts(["tokens"])
