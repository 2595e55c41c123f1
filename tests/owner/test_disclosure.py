"""What a record says has left verbatim is what a reader of the offer could count."""

from __future__ import annotations

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
    full, middle = get_blocks(model), record.offers[0].middle
    total = sum(p.numel() for i in range(1, 5) for p in full[i].parameters())
    found = 0
    for position, block in zip(middle, list(get_blocks(offer.model))[1:-1], strict=True):
        own = dict(full[position].named_parameters())
        for name, tensor in block.named_parameters():
            original = own.get(name.replace(".up.bias", ".bias"))
            if original is not None:
                found += int(torch.isin(tensor[tensor != 0], original).sum())
    assert record.disclosed == pytest.approx(found / total, abs=0.004)
    assert 0 < record.disclosed <= 1


@pytest.mark.parametrize("recipe", [[Noise(scale=0.4)], [Quantise(bits=4)]])
def test_matrices_that_changed_throughout_count_for_nothing(recipe: Any) -> None:
    model = language_model("llama")
    _, record = make_offer(model, adapter=[0, 5], recipe=recipe, device="cpu")
    sizes = {n: p.numel() for n, p in get_blocks(model)[1].named_parameters()}
    kept = {n: size for n, size in sizes.items() if "norm" in n or n.endswith("bias")}
    assert record.disclosed == pytest.approx(sum(kept.values()) / sum(sizes.values()), abs=1e-3)


def test_offers_with_other_adapters_add_up_block_by_block(tmp_path: Path) -> None:
    model, path = language_model("llama"), tmp_path / "record.json"

    def share(adapter: list[int], recipe: Any) -> float:
        make_offer(model, adapter=adapter, recipe=recipe, device="cpu")[1].save(path)
        return Record.load(path).disclosed

    assert share([0, 5], [Drop(keep=1)]) == pytest.approx(1 / 4)
    first = set(Record.load(path).offers[0].middle)
    second = share([0, 3, 4, 5], [Drop(keep=1)])
    assert second == pytest.approx(len(first | {3, 4, *Record.load(path).offers[1].middle}) / 4)
    assert share([1, 2, 3, 4], []) == 1  # no block is adapter in every offer, and all have left
