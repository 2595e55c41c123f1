"""Emulators of allow-listed layers are tuned, and their deltas plugged, like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.crash import Cluster, Share
from offsite.compress.noise import Noise
from offsite.compress.quantise import Quantise
from offsite.compress.rank import Rank
from offsite.compress.scaleot.step import LayerReplace
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.split import join, whole_middle
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.report.bars import draw_importance
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.context import logits, rows, world

RECIPES: dict[str, list[Any]] = {
    "scaleot": [LayerReplace(alpha=0.5, steps=1, rank=3), Rank(beta=0.8)],
    "crash": [Cluster(keep=2), Share(), Noise(scale=0.3), Quantise(bits=4, group=8)],
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", [Full(), LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama"])
def test_tune_and_plug(family: str, method: Any, recipe: str, tmp_path: Path) -> None:
    context = world(family)
    offer, record = make_offer(
        context.model, adapter=context.split.adapter, recipe=RECIPES[recipe], data=context.data,
        device="cpu",
    )  # fmt: skip
    offer.save(tmp_path / "offer")
    loaded = Offer.load(tmp_path / "offer")
    frozen = {n: p.clone() for n, p in loaded.model.named_parameters()}
    tuned = run_tune(
        loaded, rows(), method, options=TrainOptions(steps=2, lr=1e-2, batch_size=4), device="cpu"
    )
    tuned.delta.save(tmp_path / "delta")
    full = plug(context.model, Delta.load(tmp_path / "delta"), record)
    assert not torch.allclose(logits(full), logits(context.model), atol=1e-4)
    untouched = whole_middle(context.model, context.split)
    swapped, _ = join(full, context.split, untouched)  # the middle is still the model's own
    assert torch.equal(logits(swapped), logits(full))
    assert all(torch.equal(p, frozen[n]) for n, p in loaded.model.named_parameters())


def test_the_picture_of_importance(tmp_path: Path) -> None:
    table = {"influence": [0.1, 0.2, 0.3], "angular": [0.3, 0.2, 0.1]}
    draw_importance(table, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(OffsiteError, match="no signal"):
        draw_importance({}, tmp_path / "b.png")
