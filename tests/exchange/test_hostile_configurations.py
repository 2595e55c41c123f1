"""Configurations of a few bytes that ask for giant models: refused in 4 s and 200 MB by the system.

Each test forges the config.json of a small valid offer in many ways and loads every forgery in one
process that may use 4 s of processor time and 200 MB, all of them together.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from offsite.compress.drop import Drop
from offsite.exchange.file_set import MANIFEST
from offsite.model.kind import kind_of_task
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from tests.support.forge import dump, load
from tests.support.giants import MANY, forged, integers, outcome
from tests.support.limited import limited
from tests.support.models import COMMON, LANGUAGE, WIDTH, language_model, vision_model

DEPTH = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"}
SIZES = (  # integers that every family which has them gives memory to
    "hidden_size", "n_embd", "vocab_size", "num_hidden_layers", "n_layer", "num_layers",
    "num_experts", "num_local_experts", "image_size",
)  # fmt: skip
HUGE = [  # families whose default models have the most modules or take the longest to build
    "glm_moe_dsa", "inkling_text", "axk2", "hy_v3", "deepseek_v3", "deepseek_v4",
    "phi4_multimodal", "gemma3n", "gemma4", "zamba2", "jamba", "nemotron_h", "mamba2", "rwkv",
    "xlstm", "musicgen_melody", "mvp", "moshi", "bart", "bigbird_pegasus", "qwen3_moe",
    "gpt_oss", "dbrx",
]  # fmt: skip


def saved(model: Any, folder: Path) -> Path:
    """A small offer of a model."""
    made, _ = make_offer(model, adapter=ends(1, 1), recipe=[Drop(keep=1)], device="cpu")
    made.save(folder)
    return folder


def within_limits(folder: Path, contents: Mapping[str, Any], giants: Collection[str]) -> None:
    """Every configuration is judged within the limits, and those called a giant are refused."""

    def try_all() -> None:
        for name, content in contents.items():
            told = outcome(folder, content)
            assert told != "read" or name.rpartition(".")[2] not in giants, f"{name}: {told}"

    assert (told := limited(try_all)) == "done", told


@pytest.mark.parametrize("family", [*LANGUAGE, "qwen3_moe", "mixtral", "gpt_neo", "gptj"])
def test_giant_integers(family: str, tmp_path: Path) -> None:
    folder = saved(tiny(family), tmp_path / "offer")
    content = load(folder / "config.json")
    cases = {".".join(place): forged(content, place) for place in integers(content)}
    assert {key for key in SIZES if key in cases}
    within_limits(folder, cases, SIZES)


def tiny(family: str) -> Any:
    """A tiny model of a family, of those with experts or buffers too."""
    if family in LANGUAGE:
        return language_model(family)
    experts = {**WIDTH, "num_key_value_heads": 1, "moe_intermediate_size": 16}
    more: dict[str, Any] = {
        "qwen3_moe": {**experts, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        "mixtral": {**experts, "num_local_experts": 4},
        "gpt_neo": {"hidden_size": 16, "num_layers": 6, "num_heads": 2,
                    "attention_types": [[["global", "local"], 3]], "max_position_embeddings": 64},
        "gptj": {"n_embd": 16, "n_layer": 6, "n_head": 2, "n_positions": 64, "rotary_dim": 4},
    }[family]  # fmt: skip
    config = CONFIG_MAPPING[family](**{**COMMON, **more})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", ["vit", "beit", "dinov2"])
def test_giant_integers_of_vision_models(family: str, tmp_path: Path) -> None:
    made, _ = make_offer(
        vision_model(family), adapter=ends(1, 1), recipe=[Drop(keep=1)], device="cpu",
        task=load_task("image-classification"),
    )  # fmt: skip
    made.save(folder := tmp_path / "offer")
    content = load(folder / "config.json")
    cases = {".".join(place): forged(content, place) for place in integers(content)}
    within_limits(folder, cases, set(SIZES) - {"vocab_size"})  # BEiT's is for pretraining


@pytest.mark.parametrize("family", HUGE)
def test_whole_models_on_the_tensors_of_a_tiny_one(family: str, tmp_path: Path) -> None:
    folder = saved(language_model("llama"), tmp_path / "offer")
    config = CONFIG_MAPPING[family]()
    kind_of_task("text").model_class(config)  # import the family's code, which is not hostile
    default = json.loads(config.to_json_string(use_diff=False))
    cases = {"default": default}
    for depth in (6, 38):
        cases[str(depth)] = {**default, **dict.fromkeys(DEPTH & default.keys(), depth)}
    within_limits(folder, cases, tuple(cases))


def test_many_tiny_tensors_do_not_buy_a_giant_model(tmp_path: Path) -> None:
    folder = saved(language_model("llama"), tmp_path / "offer")
    content = load(folder / MANIFEST)
    content["tensors"] |= {f"a.{i}": {"dtype": "U8", "shape": [1]} for i in range(3000)}
    dump(folder / MANIFEST, content)
    config = load(folder / "config.json") | {"num_hidden_layers": MANY}
    within_limits(folder, {"layers": config}, ["layers"])


def test_hidden_buffers_are_bounded_by_what_the_offer_brings(tmp_path: Path) -> None:
    folder = saved(tiny("gptj"), tmp_path / "offer")
    config = load(folder / "config.json")
    assert outcome(folder, {**config, "n_positions": 2048}) == "read"
    within_limits(folder, {"positions": {**config, "n_positions": 3_000_000}}, ["positions"])
