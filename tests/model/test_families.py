"""Families with something of their own: mixtures of experts, odd norms, blocks that cannot move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.compress.drop import Drop
from offsite.compress.noise import Noise
from offsite.compress.quantise import Quantise
from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support import Run
from tests.support.models import COMMON, WIDTH, inputs_for, output_of

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 6000}),
    "olmo": ("OlmoConfig", {}),
    "gpt_neo": ("GPTNeoConfig", {"num_layers": 6, "attention_types": [[["global", "local"], 3]]}),
    "diffllama": ("DiffLlamaConfig", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "beam": ("BeamConfig", {**EXPERTS, "mlp_layer_types": ["dense"] * 6}),
    "sparse_step": ("Qwen2MoeConfig", {**EXPERTS, "decoder_sparse_step": 2}),
}  # fmt: skip


def build(kind: str) -> Any:
    name, more = KINDS[kind]
    torch.manual_seed(0)
    width = {k: v for k, v in WIDTH.items() if kind != "gpt_neo" or "layer" not in k}
    width |= {"num_key_value_heads": 1} if kind != "gpt_neo" else {"num_heads": 2, "window_size": 4}
    config = getattr(transformers, name)(**{**COMMON, **width, **more})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def loaded(offer: Offer, folder: Path) -> Any:
    offer.save(folder)
    return Offer.load(folder).model


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_make_the_round_trip_from_disk(
    kind: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    build(kind).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    offer, record = make_offer(tmp_path / "model", adapter=ends(1, 1), recipe=[Drop(keep=2)])
    offer.save(tmp_path / "offer")
    options = TrainOptions(steps=1, batch_size=2)
    tuned = run_tune(
        Offer.load(tmp_path / "offer"), text_file, options=options, task=CausalText(max_length=16)
    )
    plugged = plug(tmp_path / "model", tuned.delta, record)
    own = get_blocks(plugged)[5].state_dict()
    for name, value in get_blocks(tuned.model)[3].state_dict().items():
        assert torch.equal(own[name], value), name
    for step in (Noise(scale=0.1), Quantise(bits=4, group=8)):
        with pytest.raises(OffsiteError, match="experts"):
            make_offer(tmp_path / "model", adapter=ends(1, 1), recipe=[step])


def test_blocks_without_parameters_left_are_not_taken_for_shared(tmp_path: Path) -> None:
    offer, _ = make_offer(build("olmo"), adapter=ends(1, 1), recipe=[Quantise(bits=4, group=8)])
    batch = inputs_for(offer.model)
    assert torch.equal(
        output_of(loaded(offer, tmp_path / "offer"), batch), output_of(offer.model, batch)
    )


def test_positions_under_another_name_move_too() -> None:
    offer, _ = make_offer(build("gpt_neo"), adapter=ends(1, 1), recipe=[Drop(keep=2)])
    ids = inputs_for(offer.model)["input_ids"]
    with torch.no_grad():
        cache = offer.model(ids[:, :6], use_cache=True).past_key_values
        last = offer.model(ids[:, 6:7], past_key_values=cache).logits[:, -1]
        assert torch.allclose(last, offer.model(ids[:, :7]).logits[:, -1], atol=1e-5)


@pytest.mark.parametrize("kind", ["diffllama", "beam", "sparse_step"])
def test_blocks_that_differ_by_position_do_not_move(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.save_pretrained(tmp_path / "model")
    for source in (model, tmp_path / "model"):
        with pytest.raises(OffsiteError, match="cannot move"):
            offer, _ = make_offer(source, adapter=ends(1, 1), recipe=[Drop(keep=1)])
            offer.save(tmp_path / "offer")
    offer, _ = make_offer(model, adapter=ends(1, 1), recipe=[])
    batch = inputs_for(model)
    assert torch.equal(output_of(loaded(offer, tmp_path / "whole"), batch), output_of(model, batch))


def test_a_float32_model_plugs_in_float16(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model, data = model_folder("llama"), ("--data", text_file, "--max-length", 32)
    record = ("--record", tmp_path / "offer.record.json")
    words: tuple[object, ...] = ("--adapter", "ends:1,1", "--keep", 2, "--out", tmp_path / "offer")
    assert run("offer", model, *words, *record)[0] == 0
    tune = ("tune", tmp_path / "offer", *data, "--steps", 1, "--out", tmp_path / "delta")
    assert run(*tune)[0] == 0
    words = (*record, "--out", tmp_path / "tuned", "--dtype", "float16")
    status, _, err = run("plug", model, tmp_path / "delta", *words)
    assert status == 0, err
    tuned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert tuned.dtype == torch.float16


@pytest.mark.parametrize("recipe", [[Drop(keep=2)], [Quantise(bits=8)]], ids=["plain", "special"])
def test_how_a_model_generates_travels_with_it(recipe: Any, tmp_path: Path) -> None:
    model = build("mixtral" if isinstance(recipe[0], Drop) else "olmo")
    model.generation_config.max_new_tokens = 5
    offer, _ = make_offer(model, adapter=ends(1, 1), recipe=recipe)
    assert loaded(offer, tmp_path / "offer").generation_config.max_new_tokens == 5


def test_a_pad_token_outside_the_vocabulary_is_named(
    run: Run, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = model_folder("llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "pad_token_id": 300}))
    status, _, err = run("offer", model, "--out", tmp_path / "o", "--keep", 1)
    assert status == 2 and "pad_token_id 300, but the vocabulary has 300 tokens" in err
    assert "choose the task" not in err
