"""Exact identities of the surgery, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.compress.step import Context, compress
from offsite.errors import OffsiteError
from offsite.model.blocks import assemble, block_path, get_blocks
from offsite.model.split import Middle, ends, join, make_split, whole_middle
from tests.support.models import (
    LANGUAGE,
    VISION,
    inputs_for,
    language_model,
    output_of,
    vision_model,
)

FAMILIES = [*LANGUAGE, *VISION]


def build(family: str) -> Any:
    return language_model(family) if family in LANGUAGE else vision_model(family)


@pytest.mark.parametrize("adapter", [ends(2, 2), ends(1, 0), (1, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_then_join_is_the_model(family: str, adapter: Any) -> None:
    model = build(family)
    batch = inputs_for(model)
    before = output_of(model, batch)
    split = make_split(adapter, 6)
    middle = compress([Drop(keep=len(split.middle))], Context(model, split))
    joined, positions = join(model, split, middle)
    assert torch.equal(output_of(joined, batch), before)
    assert positions == split.adapter
    assert torch.equal(output_of(model, batch), before)  # the model itself is untouched


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_model_runs_only_the_kept_blocks(family: str) -> None:
    model = build(family)
    batch = inputs_for(model)
    split = make_split(ends(2, 2), 6)
    small, positions = join(model, split, compress([Drop(keep=1)], Context(model, split)))
    assert len(get_blocks(small)) == 5 and positions == (0, 1, 3, 4)
    calls = []
    for block in get_blocks(small):
        block.register_forward_hook(lambda *_: calls.append(1))
    output_of(small, batch)
    assert len(calls) == 5
    assert len(get_blocks(model)) == 6


@pytest.mark.parametrize("family", LANGUAGE)
def test_generation_with_and_without_cache_agrees(family: str) -> None:
    model = language_model(family)
    split = make_split((1, 4), 6)
    whole = whole_middle(model, split)
    shared = Middle((whole.blocks[0], whole.blocks[0], whole.blocks[2]), (0, 2, 3))
    for middle in (compress([Drop(keep=2)], Context(model, split)), shared):
        emulator, _ = join(model, split, middle)
        ids = inputs_for(model)["input_ids"]
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        options["eos_token_id"] = None
        with_cache = emulator.generate(ids, **options)
        without = emulator.generate(ids, use_cache=False, **options)
        assert torch.equal(with_cache, without)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3"])
def test_layer_types_follow_their_blocks(family: str) -> None:
    model = language_model(family)
    types = list(model.config.layer_types)
    small = assemble(model, [get_blocks(model)[i] for i in (0, 1, 4)], (0, 1, 4))
    assert small.config.layer_types == [types[i] for i in (0, 1, 4)]
    assert small.config.num_hidden_layers == 3 and model.config.num_hidden_layers == 6


def test_unknown_structures_are_refused() -> None:
    with pytest.raises(OffsiteError, match="no list of transformer blocks"):
        block_path(torch.nn.Linear(2, 2))
    import transformers

    config = transformers.BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50,
    )  # fmt: skip
    with pytest.raises(OffsiteError, match="several"):
        block_path(transformers.BartModel(config))


def test_inverse_layer_scaling_cannot_move() -> None:
    model = language_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(OffsiteError, match="scale_attn_by_inverse_layer_idx"):
        assemble(model, [get_blocks(model)[3]], (3,))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ((0, 6), "out of range"),
        ((0, 0), "twice"),
        (range(6), "no middle"),
        (ends(3, 3), "no middle"),
    ],
)
def test_impossible_splits_are_refused(adapter: Any, message: str) -> None:
    with pytest.raises(OffsiteError, match=message):
        make_split(adapter, 6)


@pytest.mark.parametrize(
    ("count", "keep", "kept"),
    [(20, 8, [0, 3, 5, 8, 11, 14, 16, 19]), (20, 1, [9]), (5, 5, [0, 1, 2, 3, 4]), (9, 2, [0, 8])],
)
def test_uniform_drop_keeps_the_papers_indices(count: int, keep: int, kept: list[int]) -> None:
    assert list(Drop(keep).plan(range(count), 0) or ()) == kept
