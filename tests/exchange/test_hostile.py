"""Tokenizers, templates, preprocessors and configurations that would never end: refused at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.exchange.hostile import backtracks, limit_modules, vet_tokenizer
from offsite.exchange.offer import Offer
from offsite.exchange.template import vet_template
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from tests.support.forge import seal
from tests.support.limited import limited
from tests.support.models import language_model, vision_model

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def offer(tmp_path: Path, tokenizer: Any) -> Path:
    made, _ = make_offer(
        language_model("llama"), adapter=ends(1, 1), recipe=[Drop(keep=1)], processor=tokenizer,
        device="cpu",
    )  # fmt: skip
    made.save(tmp_path / "offer")
    return tmp_path / "offer"


def refused(folder: Path, words: str) -> None:
    """Sealed as a malicious sender would, the offer is refused in 4 s and 200 MB by the system."""
    seal(folder)
    told = limited(lambda: Offer.load(folder))
    assert told.startswith("OffsiteError: ") and words in told, told


def expanding(content: dict[str, Any]) -> None:
    content["normalizer"] = {
        "type": "Replace", "pattern": {"String": "t"}, "content": "t" * 1_000_000
    }  # fmt: skip


def chained(content: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "t"}, "content": "tttttttttt"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [step] * 9}


def slow(content: dict[str, Any]) -> None:
    pattern = {"Regex": "(([a-z ])+.)+[A-Z]([a-z ])+$"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    both = [split, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}


def padded(content: dict[str, Any]) -> None:
    content["padding"] = {
        "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>",
    }  # fmt: skip


def rounded(content: dict[str, Any]) -> None:
    content["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 10**9,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>",
    }  # fmt: skip


def wrapped(content: dict[str, Any]) -> None:
    many = {"id": "<|end|>", "ids": [0] * 10**5, "tokens": ["<|end|>"] * 10**5}
    special = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<|end|>": many},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (expanding, "many times longer"),
        (chained, "many times longer"),
        (padded, "many times longer"),
        (rounded, "many times longer"),
        (wrapped, "many times longer"),
        (slow, "repetition inside a repetition"),
    ],
)
def test_hostile_tokenizers(change: Change, words: str, offer: Path) -> None:
    content = json.loads((offer / "tokenizer.json").read_text())
    change(content)
    (offer / "tokenizer.json").write_text(json.dumps(content))
    refused(offer, words)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x",
        "{{ 'a' * 10000000000 }}",
        "{% set a = ['x' * 1000] * 100000000 %}{{ a|join }}",
        "{% set n = namespace(a='x') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}"
        "{% endfor %}{{ n.a }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% for a in x %}" * 5 + "{% endfor %}" * 5,
        "{{ 'a' | center(1000000000) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ lipsum(n=9999) }}",
        "{{ 'a' | replace('a', 'aaaaaaaaaa')" + " | replace('a', 'aaaaaaaaaa')" * 9 + " }}",
        "{% set a = 'x' %}" + "{% set a = [a, a] | join %}" * 40 + "{{ a }}",
        "{% set a = 'x' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40 + "{{ a }}",
        "".join(
            f"{{% macro f{i + 1}() %}}{{{{ f{i}() }}}}{{{{ f{i}() }}}}{{% endmacro %}}"
            for i in range(40)
        )
        + "{% macro f0() %}x{% endmacro %}{{ f40() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(40) }}",
    ],
)
def test_hostile_templates(template: str, offer: Path) -> None:
    (offer / "chat_template.jinja").write_text(template)
    refused(offer, "repeats far more than a conversation needs")


def test_templates_of_usual_models_pass() -> None:
    vet_template(
        "{%- if tools %}{{ tools | tojson(indent=4) }}{% endif %}{% for m in messages %}"
        "{% if loop.index0 % 2 == 0 %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}"
        "{% generation %}{% for c in m.calls %}{% for k, v in c.items() %}{{ k ~ '=' ~ v }}"
        "{% endfor %}{% endfor %}{% endgeneration %}{% endif %}{% endfor %}"
        "{% set n = messages[::-1][0:1000] %}"
        "{% macro kind(part) %}{% if part.type == 'array' %}{{ 'list[' + kind(part['items']) }}"
        "{% else %}{% for t in part.anyOf %}{{ kind(t) }}{% endfor %}{% endif %}{% endmacro %}"
    )
    with pytest.raises(
        OffsiteError, match=r"not a valid Jinja template.*--leave-out chat-template"
    ):
        vet_template("{% for")


def test_patterns_of_usual_tokenizers_pass(tmp_path: Path, tokenizer: Any) -> None:
    gpt4 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    o200k = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|(?:\r?\n)+|\(x\)+"
    )
    assert not backtracks(gpt4) and not backtracks(o200k) and not backtracks(r"([*+]x)+(ab){2,3}")
    assert backtracks("(a+)+") and backtracks("((a|b)*c)*") and backtracks("(x{2,})+")
    tokenizer.save_pretrained(tmp_path)
    vet_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 30_000, "width": 30_000}},
        {"size": 2**31 - 1},
        {"pad_size": {"height": 60_000, "width": 60_000}},
        {"image_std": [0.0, 1.0, 1.0]},
        {"image_mean": [1e308] * 3},
        {"size_divisor": 10**9},
    ],
)
def test_hostile_image_processors(change: dict[str, Any], tmp_path: Path) -> None:
    from offsite.tasks import load_task

    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    made, _ = make_offer(
        vision_model("vit"), adapter=ends(1, 1), task=load_task("image-classification"),
        processor=processor, device="cpu",
    )  # fmt: skip
    made.save(tmp_path / "offer")
    path = tmp_path / "offer" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(tmp_path / "offer", "preprocessor_config.json' of the offer")


def test_a_small_file_cannot_ask_for_a_model_that_takes_minutes(offer: Path) -> None:
    config = json.loads(transformers.BigBirdConfig(is_decoder=True).to_json_string(use_diff=False))
    config |= {"model_type": "xlstm", "num_hidden_layers": 6, "num_blocks": 2048}
    (offer / "config.json").write_text(json.dumps(config))
    seal(offer)
    start = time.process_time()
    with pytest.raises(OffsiteError):
        Offer.load(offer)
    assert time.process_time() - start < 3


def test_building_stops_at_the_limit() -> None:
    model = nn.Sequential()
    with (
        pytest.raises(OffsiteError, match="larger model than its tensors fill"),
        limit_modules(100),
    ):
        for index in range(10**5):
            model.add_module(str(index), nn.Identity())
    assert len(model) <= 101
    with limit_modules(100):
        assert len(nn.Sequential(*(nn.Identity() for _ in range(50)))) == 50
    nn.Sequential(*(nn.Identity() for _ in range(200)))  # the limit is gone
    assert torch.nn.modules.module._global_module_registration_hooks == {}
