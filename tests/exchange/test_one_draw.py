"""Noise: two scales of one draw give the weights back, so a record takes one draw and one scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.linears import linears, matrix
from offsite.compress.noise import Noise
from offsite.compress.quantise import Quantise
from offsite.compress.step import compress
from offsite.errors import OffsiteError
from offsite.exchange.record import Record
from offsite.model.blocks import get_blocks
from offsite.owner.offering import make_offer
from tests.support.context import world


def test_two_scales_of_one_draw_give_the_weights_back() -> None:
    context = world()
    small, large = (compress([Noise(scale=scale)], context).blocks[0] for scale in (0.4, 0.6))
    pairs = zip(linears(small), linears(large), strict=True)
    for (name, a), (_, b) in pairs:
        original = matrix(get_blocks(context.model)[1].get_submodule(name))
        found = 3 * matrix(a) - 2 * matrix(b)
        assert torch.allclose(found, original, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "seed", "refused"),
    [
        ([Noise(scale=0.6)], 0, True),
        ([Noise(scale=0.4)], 1, True),
        ([Quantise(bits=8)], 1, False),
        ([Noise(scale=0.4), Quantise(bits=4, group=8)], 0, False),
    ],
    ids=["other scale", "other seed", "no noise", "same draw"],
)
def test_a_record_takes_one_draw_and_one_scale(
    recipe: list[Any], seed: int, refused: bool, tmp_path: Path
) -> None:
    context, path = world(), tmp_path / "record.json"
    adapter = context.split.adapter
    _, first = make_offer(context.model, adapter=adapter, recipe=[Noise(scale=0.4)], device="cpu")
    first.save(path)
    _, second = make_offer(context.model, adapter=adapter, recipe=recipe, seed=seed, device="cpu")
    if refused:
        with pytest.raises(
            OffsiteError, match="whose noise has another scale, seed or earlier steps"
        ):
            second.save(path)
        assert len(Record.load(path).offers) == 1
    else:
        second.save(path)
        assert len(Record.load(path).offers) == 2
