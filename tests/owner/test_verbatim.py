"""What a record says has left verbatim is what a reader of the offer could count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.compress.gradot.step import GradOT
from offsite.compress.noise import Noise
from offsite.compress.prune import Prune
from offsite.compress.quantise import Quantise
from offsite.compress.rank import Rank
from offsite.errors import OffsiteError
from offsite.exchange.record import Record
from offsite.model.blocks import get_blocks
from offsite.owner.offering import make_offer
from tests.support.context import rows
from tests.support.models import language_model


@pytest.mark.parametrize(
    "recipe",
    [
        [],
        [Drop(keep=2)],
        [Prune(keep=0.6)],
        [GradOT(attention=1, feed_forward=0.6, batches=2)],
        [Rank(beta=0.8, layers="all")],
        [Drop(keep=3), Prune(keep=0.5)],
    ],
    ids=lambda recipe: "+".join(step.kind for step in recipe) or "whole",
)
def test_the_share_is_what_a_reader_can_count(recipe: Any) -> None:
    model = language_model("llama")
    offer, record = make_offer(model, adapter=[0, 5], recipe=recipe, data=rows(), device="cpu")
    full, entry = get_blocks(model), record.offers[0]
    shipped = get_blocks(offer.model)
    places = sorted((*entry.adapter, *entry.middle))
    counted = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for block in full for p in block.parameters())
    found = counted - blocks  # embeddings and head
    for position, block in zip(places, shipped, strict=True):
        original = dict(full[position].named_parameters())
        for name, tensor in block.named_parameters():
            other = original.get(name.replace(".up.bias", ".bias"))
            if other is not None:
                found += int(torch.isin(tensor[tensor != 0], other).sum())
    assert record.parameters == counted
    assert record.verbatim == pytest.approx(found / counted, abs=0.004)
    assert 0 < record.verbatim <= 1


@pytest.mark.parametrize("recipe", [[Noise(scale=0.4)], [Quantise(bits=4)]])
def test_matrices_that_changed_throughout_count_for_nothing(recipe: Any) -> None:
    model = language_model("llama")
    _, record = make_offer(model, adapter=[0, 5], recipe=recipe, device="cpu")
    sizes = {n: p.numel() for n, p in get_blocks(model)[1].named_parameters()}
    changed = {n: size for n, size in sizes.items() if "norm" not in n and not n.endswith("bias")}
    rest = record.parameters - 4 * sum(changed.values())
    assert record.verbatim == pytest.approx(rest / record.parameters, abs=1e-3)


def test_offers_with_other_adapters_add_up_block_by_block(tmp_path: Path) -> None:
    model, path = language_model("llama"), tmp_path / "record.json"
    block = sum(p.numel() for p in get_blocks(model)[0].parameters())
    total = sum(p.numel() for p in model.parameters())

    def blocks_left(adapter: list[int], recipe: Any) -> float:
        make_offer(model, adapter=adapter, recipe=recipe, device="cpu")[1].save(path)
        left: float = 6 - (1 - Record.load(path).verbatim) * total / block
        return left

    assert blocks_left([0, 5], [Drop(keep=1)]) == pytest.approx(3)
    first = set(Record.load(path).offers[0].middle)
    second = blocks_left([0, 3, 4, 5], [Drop(keep=1)])
    assert second == pytest.approx(len(first | {0, 3, 4, 5, *Record.load(path).offers[1].middle}))
    assert blocks_left([1, 2, 3, 4], []) == pytest.approx(6)


def test_records_from_before_the_name_changed_still_load() -> None:
    golden = Path(__file__).parents[1] / "exchange" / "golden" / "record.json"
    content = json.loads(golden.read_text())
    assert "disclosed_tensors" in content["offers"][0]
    record = Record.load(golden)
    assert record.offers[0].verbatim_tensors == content["offers"][0]["disclosed_tensors"]
    assert record.parameters * 2 == record.model_bytes  # bfloat16
    assert "disclosed" not in record.model_dump_json()


@pytest.mark.parametrize("key", ["adapter", "emulator_adapter"])
def test_a_record_without_a_block_is_one_sentence(key: str, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "exchange" / "golden" / "record.json"
    content = json.loads(golden.read_text())
    del content["offers"][0][key][0]
    (path := tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(OffsiteError, match="record is damaged"):
        assert Record.load(path).verbatim
