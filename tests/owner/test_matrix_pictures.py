"""Every emulator step and every tuning method on every image family, or a sentence why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.crash import Cluster, Share
from offsite.compress.distill import Distill
from offsite.compress.drop import Drop
from offsite.compress.gradot.step import GradOT
from offsite.compress.noise import Noise
from offsite.compress.prune import Prune
from offsite.compress.quantise import Quantise
from offsite.compress.rank import Rank
from offsite.compress.scaleot.step import LayerReplace
from offsite.deltas import METHODS, method_json, parse_method
from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks.image.classification import ImageClassification
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import VISION as FAMILIES
from tests.support.models import classifier
from tests.support.pictures import image_processor, logits, write_arrays

TASK = ImageClassification(augment=())
HEAL = Distill(steps=2, lm_weight=0, kd_weight=1, batch_size=4)
RECIPES: dict[str, list[Any]] = {
    "uniform": [Drop(keep=2), HEAL],
    "random": [Drop(keep=2, by="random")],
    "influence": [Drop(keep=2, by="influence")],
    "angular": [Drop(keep=2, by="angular")],
    "leave_one_out": [Drop(keep=2, by="leave_one_out")],
    "crash": [Cluster(keep=2), Share()],
    "scaleot": [LayerReplace(alpha=0.5, steps=2, rank=2, batch_size=4), Rank(beta=0.5)],
    "gradot": [GradOT(attention=0.5, feed_forward=0.5)],
    "prune": [Prune(keep=0.5)],
    "int8": [Quantise(bits=8)],
    "noise": [Noise(scale=0.4), Quantise(bits=4)],
}
REFUSED = ("prompt", "intrinsic_prompt")  # pictures have no tokens to put one before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_arrays(tmp_path_factory.mktemp("arrays")))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_step(family: str, recipe: str, data: str, tmp_path: Path) -> None:
    model = classifier(family)
    offer, record = make_offer(
        model, adapter=ends(1, 1), recipe=RECIPES[recipe], data=data, task=TASK,
        processor=image_processor(),
    )  # fmt: skip
    assert not torch.equal(logits(offer.model), logits(model))
    offer.save(tmp_path / "offer")
    loaded = Offer.load(tmp_path / "offer")
    torch.testing.assert_close(logits(loaded.model), logits(offer.model))
    delta = run_tune(loaded, data, options=TrainOptions(steps=1, batch_size=4), task=TASK).delta
    assert torch.isfinite(logits(plug(model, delta, record))).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [*METHODS, "lora+bitfit", "bottleneck+prefix+vera"])
def test_every_method(family: str, kind: str, data: str) -> None:
    model = classifier(family)
    offer, record = make_offer(model, adapter=ends(1, 1), task=TASK, processor=image_processor())
    options = TrainOptions(steps=2, batch_size=4)
    if kind in REFUSED:
        with pytest.raises(OffsiteError, match="A prompt needs a language model"):
            run_tune(offer, data, METHODS[kind](), options=options, task=TASK)
        return
    method = parse_method(method_json(kind))
    tuned = run_tune(offer, data, method, options=options, task=TASK)
    plugged = plug(model, tuned.delta, record)
    torch.testing.assert_close(logits(plugged), logits(tuned.model), rtol=1e-3, atol=1e-4)
