"""Deltas with classifier heads of their own on one image model: kept, switched, turned plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.deltas import BitFit, Bottleneck, Combined, Full, Head, LoRA, Masking
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.model.heads import labels_of
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugged import Plugged
from offsite.owner.plugging import keep_apart, plug
from offsite.owner.serving import Served, load_plugged
from offsite.tasks.image.classification import ImageClassification
from offsite.training.options import TrainOptions
from offsite.tuner.exporting import plain_delta
from offsite.tuner.tuning import tune
from tests.support.models import VISION as FAMILIES
from tests.support.models import classifier
from tests.support.pictures import NAMES, image_processor, logits, write_arrays

TASK = ImageClassification()
METHODS = {
    "full": Full(),
    "lora": LoRA(rank=2),
    "bottleneck": Bottleneck(size=4),
    "head": Head(),
    "masking": Masking(),
    "bitfit": BitFit(),
    "lora+bottleneck": Combined((LoRA(rank=2), Bottleneck(size=4))),
}


def tuned(family: str, method: Any, folder: Path, labels: int = 5, seed: int = 0) -> Any:
    """A model of five classes, the offer, its record, and a delta for three colours."""
    arrays = write_arrays(folder)
    model = classifier(family, labels)
    offer, record = make_offer(
        model, adapter=ends(2, 1), recipe=[Drop(keep=1)], task=TASK, processor=image_processor()
    )
    options = TrainOptions(steps=2, batch_size=4, lr=1e-2, seed=seed)
    tune(offer, str(arrays), method, options=options, task=TASK).save(folder / "delta")
    return model, offer, record, Delta.load(folder / "delta")


@pytest.mark.parametrize(
    ("family", "name"),
    [("vit", name) for name in METHODS] + [(f, "full") for f in FAMILIES if f != "vit"],
)
def test_a_head_is_kept_served_and_taken_away_again(family: str, name: str, tmp_path: Path) -> None:
    model, offer, record, delta = tuned(family, METHODS[name], tmp_path)
    before, names = logits(model), labels_of(model)
    expected = logits(plug(model, delta, record))
    keep_apart(model, delta, record).save(tmp_path / "plugged")
    assert (tmp_path / "plugged" / "head.safetensors").is_file()
    plugged = Plugged.load(tmp_path / "plugged")
    assert plugged.labels == NAMES and not set(plugged.own) & set(plugged.head)
    served = Served(model)
    served.add("colours", plugged)
    assert torch.equal(logits(model), before) and labels_of(model) == names
    for _ in range(2):
        served.switch("colours")
        assert labels_of(model) == NAMES and model.config.num_labels == 3
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        served.switch()
        assert torch.equal(logits(model), before) and labels_of(model) == names
    loaded = load_plugged(classifier(family, 5), tmp_path / "plugged")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-6)
    method: Any = METHODS[name]
    if method.merges:
        plain = plain_delta(delta, offer)
        assert plain.manifest.head == delta.manifest.head and plain.manifest.labels == NAMES
        plain.save(tmp_path / "plain")
        again = plug(classifier(family, 5), Delta.load(tmp_path / "plain"), record)
        assert labels_of(again) == NAMES
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-6)


def test_two_heads_do_not_add_up(tmp_path: Path) -> None:
    model, _, record, delta = tuned("vit", LoRA(rank=2), tmp_path)
    served = Served(model)
    for name in ("one", "two"):
        served.add(name, keep_apart(model, delta, record))
    served.switch("one")
    shown = logits(model)
    for wanted in ({"one": 1.0, "two": 1.0}, {"one": 0.5}):
        with pytest.raises(OffsiteError, match="classifier head"):
            served.switch(**wanted)
        assert torch.equal(logits(model), shown), "a refusal changes nothing"
    served.remove("one")
    assert served.active == {} and labels_of(model) == tuple(f"LABEL_{i}" for i in range(5))


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, _, record, delta = tuned("vit", Head(), tmp_path)
    good = keep_apart(model, delta, record)
    for change in (
        {"labels": ("a", "b")},
        {"labels": ("a", "b", "b")},
        {"head": (), "labels": ()},
        {"tensors": {k: v for k, v in good.tensors.items() if "bias" not in k}},
    ):
        bad = Plugged(**{**vars(good), **change})
        served = Served(model)
        with pytest.raises(OffsiteError):
            served.add("bad", bad)
        assert not served.deltas
