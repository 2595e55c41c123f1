"""Families whose ends hold a part for every block: what stays of a dropped model is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.compress.drop import Drop
from offsite.compress.importance import bypass
from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import Checkpoint
from offsite.model.kind import TEXT
from offsite.model.per_block import find_parts, take_parts
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import COMMON, WIDTH, inputs_for, output_of

SHAPE = {**COMMON, **WIDTH, "num_hidden_layers": 8, "num_key_value_heads": 1, "head_dim": 8}
OWN: dict[str, dict[str, Any]] = {
    "Gemma3nTextConfig": {
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": None,
    },
    "Gemma4TextConfig": {"global_head_dim": 16},
}


def build(name: str, readers: int = 0) -> Any:
    """A tiny model with inputs of its own for every block; the last ``readers`` share keys."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(
        **SHAPE,
        **OWN[name],
        vocab_size_per_layer_input=4000,
        hidden_size_per_layer_input=4,
        num_kv_shared_layers=readers,
        layer_types=["sliding_attention", "full_attention"] * 4,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("source", ["disk", "memory"])
@pytest.mark.parametrize("name", OWN)
def test_inputs_of_dropped_blocks_leave_with_them(name: str, source: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    given = tmp_path / "model" if source == "disk" else model
    offer, record = make_offer(given, adapter=ends(2, 2), recipe=[Drop(keep=2)])
    offer.save(tmp_path / "offer")
    emulator = Offer.load(tmp_path / "offer").model
    entry, batch = record.offers[0], inputs_for(model)
    with bypass(model, {*range(8)} - {*entry.adapter, *entry.middle}):
        assert torch.equal(output_of(emulator, batch), output_of(model, batch))
    width = emulator.model.embed_tokens_per_layer.weight.shape[1]
    assert width == 6 * 4 == emulator.model.embed_tokens_per_layer.embedding_dim


def test_a_delta_of_such_a_model_plugs_back(tmp_path: Path) -> None:
    build("Gemma3nTextConfig").save_pretrained(tmp_path / "model")
    offer, record = make_offer(tmp_path / "model", adapter=ends(2, 2), recipe=[Drop(keep=2)])
    rows = [{"input_ids": torch.arange(1, 9), "labels": torch.arange(1, 9)}] * 4
    tuned = run_tune(offer, rows, options=TrainOptions(steps=1, batch_size=2))
    plugged, emulator = plug(tmp_path / "model", tuned.delta, record), tuned.model
    pairs = zip(record.offers[0].adapter, record.offers[0].emulator_adapter, strict=True)
    for position, index in pairs:
        for key, value in get_blocks(emulator)[index].state_dict().items():
            assert torch.equal(get_blocks(plugged)[position].state_dict()[key], value), key


@pytest.mark.parametrize("source", ["disk", "memory"])
def test_numbers_that_the_configuration_lists_move_with_their_blocks(
    source: str, tmp_path: Path
) -> None:
    """Gemma 3n as published: the first blocks are sparse, by a list with one number a block."""
    torch.manual_seed(0)
    own = {**OWN["Gemma3nTextConfig"], "activation_sparsity_pattern": [0.9] * 3 + [0.0] * 5}
    config = transformers.Gemma3nTextConfig(
        **SHAPE, **own, vocab_size_per_layer_input=4000, hidden_size_per_layer_input=4,
        num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"] * 4,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    given = tmp_path / "model" if source == "disk" else model
    offer, _ = make_offer(given, adapter=(0, 7), recipe=[Drop(keep=2)])
    offer.save(tmp_path / "offer")
    emulator, batch = Offer.load(tmp_path / "offer").model, inputs_for(model)
    assert emulator.config.activation_sparsity_pattern == [0.9, 0.9, 0.0, 0.0]
    with bypass(model, {2, 3, 4, 5}):
        assert torch.equal(output_of(emulator, batch), output_of(model, batch))


@pytest.mark.parametrize("source", ["disk", "memory"])
def test_a_setting_derived_from_the_position_cannot_move(source: str, tmp_path: Path) -> None:
    """DiffLlama scales by a number that it works out from the index."""
    shape = {**SHAPE, "num_key_value_heads": 2, "num_attention_heads": 2}
    model = transformers.AutoModelForCausalLM.from_config(transformers.DiffLlamaConfig(**shape))
    model.save_pretrained(tmp_path / "model")
    given = tmp_path / "model" if source == "disk" else model
    with pytest.raises(OffsiteError, match=r"differ by position \(in 'self_attn.lambda_init'\)"):
        make_offer(given, adapter=ends(2, 2), recipe=[Drop(keep=2)])


@pytest.mark.parametrize("name", OWN)
def test_a_block_whose_keys_are_read_must_stay(name: str, tmp_path: Path) -> None:
    model = build(name, readers=2)
    with pytest.raises(OffsiteError, match=r"Block 4 cannot be left out.*such as 0,4,5,7"):
        make_offer(model, adapter=ends(2, 2), recipe=[Drop(keep=2)])
    offer, _ = make_offer(model, adapter=(0, 4, 5, 7), recipe=[Drop(keep=2)])
    offer.save(tmp_path / "offer")
    emulator = Offer.load(tmp_path / "offer").model
    assert emulator.config.num_kv_shared_layers == 2
    with bypass(model, (2, 3)):
        assert torch.equal(
            output_of(emulator, inputs_for(model)), output_of(model, inputs_for(model))
        )


def test_parts_are_those_whose_size_follows_the_depth() -> None:
    full = {"a": (5, 12), "b": (7,), "c": (12, 4), "d": (3, 3)}
    cut = {"a": (5, 6), "b": (7,), "c": (5, 4), "d": (3, 3)}
    assert find_parts(full, cut, 4, 2) == {"a": 1}
    held = torch.arange(12).reshape(1, 12)
    assert take_parts(held, 1, 4, (0, 3)).tolist() == [[0, 1, 2, 9, 10, 11]]


@pytest.mark.parametrize("source", ["disk", "memory"])
def test_a_scale_that_follows_the_depth_stays_what_it_was(source: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.MiniCPM3Config(
        **{**SHAPE, "num_key_value_heads": 2}, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    given = tmp_path / "model" if source == "disk" else model
    offer, record = make_offer(given, adapter=ends(2, 2), recipe=[Drop(keep=2)])
    offer.save(tmp_path / "offer")
    emulator, entry = Offer.load(tmp_path / "offer").model, record.offers[0]
    with bypass(model, {*range(8)} - {*entry.adapter, *entry.middle}):
        torch.testing.assert_close(
            output_of(emulator, inputs_for(model)), output_of(model, inputs_for(model))
        )


def test_a_language_model_without_its_vision_tower_loads_by_its_own_names(tmp_path: Path) -> None:
    text = build("Gemma4TextConfig").config
    config = transformers.Gemma4Config(text_config=text.to_dict(), vision_config=None)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    loaded, batch = Checkpoint.of(tmp_path / "model", TEXT.auto_class).load(), inputs_for(model)
    assert type(loaded) is type(model) is transformers.Gemma4ForConditionalGeneration
    assert torch.equal(output_of(loaded, batch), output_of(model, batch))


@pytest.mark.parametrize("source", ["disk", "memory"])
def test_a_table_of_positions_cannot_move(source: str, tmp_path: Path) -> None:
    """Zamba 2 shares one block of attention, with small adapters for each place it stands at."""
    torch.manual_seed(0)
    config = transformers.Zamba2Config(
        **{**COMMON, "hidden_size": 16, "num_hidden_layers": 8, "intermediate_size": 32},
        num_attention_heads=2, num_mem_blocks=1, adapter_rank=2, mamba_d_state=8,
        mamba_ngroups=1, n_mamba_heads=4, layers_block_type=["mamba", "hybrid"] * 4,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    given = tmp_path / "model" if source == "disk" else model
    with pytest.raises(OffsiteError, match=r"differ by position \(in '.*layer_dic'\)"):
        make_offer(given, adapter=ends(2, 2), recipe=[Drop(keep=2)])
