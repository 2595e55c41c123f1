"""Offer, tune, plug on every vision family; the head and its labels travel with the delta."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.compress.distill import Distill
from offsite.compress.drop import Drop
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.deltas.specification.full import Full
from offsite.deltas.specification.head import Head
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.blocks import get_blocks
from offsite.model.heads import labels_of
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks.data import rows_of
from offsite.tasks.image.classification import ImageClassification
from offsite.training.options import TrainOptions
from offsite.training.resume import Interrupted
from offsite.tuner.tuning import run_tune, tune
from tests.support.models import VISION as FAMILIES
from tests.support.models import backbone, classifier
from tests.support.pictures import NAMES, logits, write_arrays
from tests.support.signals import Interrupt

TASK = ImageClassification()
SHORT = TrainOptions(steps=3, batch_size=4, lr=1e-2)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arrays(tmp_path_factory.mktemp("arrays"))


@pytest.mark.parametrize("family", FAMILIES)
def test_offers_save_and_load_bit_equal(family: str, processor: Any, tmp_path: Path) -> None:
    model = classifier(family)
    offer, _ = make_offer(
        model, adapter=ends(2, 1), recipe=[Drop(keep=2)], task=TASK, processor=processor
    )
    offer.save(tmp_path / "offer")
    loaded = Offer.load(tmp_path / "offer")
    plain, info = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "offer", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for other in (loaded.model, plain.eval()):
        assert torch.equal(logits(other), logits(offer.model))
    assert type(loaded.processor) is type(processor)
    assert len(get_blocks(loaded.model)) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_full_delta_of_a_backbone_carries_over_exactly(
    family: str, arrays: Path, processor: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    backbone(family).save_pretrained(folder)
    processor.save_pretrained(folder)
    offer, record = make_offer(folder, adapter=ends(2, 1), recipe=[Drop(keep=1)], task=TASK)
    assert labels_of(offer.model) == ("LABEL_0",)
    offer.save(tmp_path / "offer")
    record.save(tmp_path / "record.json")
    loaded = Offer.load(tmp_path / "offer")
    tuned = run_tune(loaded, str(arrays), Full(), options=SHORT, task=TASK)
    tuned.delta.save(tmp_path / "delta")
    delta = Delta.load(tmp_path / "delta")
    assert delta.manifest.labels == NAMES
    plugged = plug(folder, delta, Record.load(tmp_path / "record.json"))
    assert labels_of(plugged) == NAMES and logits(plugged).shape == (2, 3)
    for name, value in plugged.get_submodule("classifier").named_parameters():
        assert torch.equal(value, tuned.model.get_submodule("classifier").get_parameter(name))
        assert value.abs().sum() > 0
    for inner, outer in zip(loaded.manifest.adapter, (0, 1, 5), strict=True):
        there = get_blocks(tuned.model)[inner].state_dict()
        for name, value in get_blocks(plugged)[outer].state_dict().items():
            assert torch.equal(value, there[name])
    plugged.save_pretrained(tmp_path / "plugged")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "plugged")
    assert torch.equal(logits(again.eval()), logits(plugged)) and labels_of(again) == NAMES


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_delta_merges_like_on_the_emulator(
    family: str, arrays: Path, processor: Any, tmp_path: Path
) -> None:
    model = classifier(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    offer, record = make_offer(
        model, adapter=(0, 3), recipe=[Drop(keep=2)], task=TASK, processor=processor
    )
    offer.save(tmp_path / "offer")
    tuned = run_tune(
        Offer.load(tmp_path / "offer"), str(arrays), LoRA(rank=2), options=SHORT, task=TASK
    )
    tuned.delta.save(tmp_path / "delta")
    plugged = plug(model, Delta.load(tmp_path / "delta"), record)
    assert labels_of(plugged) == NAMES and labels_of(model) == tuple(f"LABEL_{i}" for i in range(3))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the owner's model must not change"
    runner: Any = tuned.model
    merged = runner.merge_and_unload()
    for inner, outer in zip(offer.manifest.adapter, (0, 3), strict=True):
        for a, b in zip(
            get_blocks(merged)[inner].parameters(),
            get_blocks(plugged)[outer].parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)
    from peft import PeftModel

    fresh = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "offer")
    by_peft = PeftModel.from_pretrained(fresh, tmp_path / "delta")
    head = tuned.model.get_submodule("base_model.model.classifier").state_dict()
    by_peft.get_submodule("base_model.model.classifier").load_state_dict(head)
    torch.testing.assert_close(logits(by_peft.eval()), logits(merged))


@pytest.mark.parametrize(
    ("family", "method"),
    [("vit", Full()), ("beit", LoRA()), ("dinov2", Head()), ("clip", Full()), ("siglip", LoRA())],
)
def test_plugging_with_the_whole_middle_is_the_tuned_emulator(
    family: str, method: Any, arrays: Path, processor: Any
) -> None:
    model = classifier(family, labels=5)
    offer, record = make_offer(model, adapter=ends(1, 1), task=TASK, processor=processor)
    assert torch.equal(logits(offer.model), logits(model))
    tuned = run_tune(offer, str(arrays), method, options=SHORT, task=TASK)
    plugged = plug(model, tuned.delta, record)
    torch.testing.assert_close(logits(plugged), logits(tuned.model))
    assert torch.equal(logits(offer.model), logits(model)), "the offer must not change"


def test_head_alone_changes_no_block(arrays: Path, processor: Any, tmp_path: Path) -> None:
    model = classifier("vit")
    offer, record = make_offer(model, recipe=[Drop(keep=1)], task=TASK, processor=processor)
    tune(offer, str(arrays), Head(), options=SHORT, task=TASK).save(tmp_path / "delta")
    delta = Delta.load(tmp_path / "delta")
    assert set(delta.values()) == {"classifier.weight", "classifier.bias"}
    plugged = plug(model, delta, record)
    for name, value in get_blocks(plugged).state_dict().items():
        assert torch.equal(value, get_blocks(model).state_dict()[name])
    assert not torch.equal(logits(plugged), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_distillation_without_labels_brings_the_emulator_closer(
    family: str, arrays: Path, processor: Any
) -> None:
    model = classifier(family, labels=7)
    options: dict[str, Any] = {"processor": processor, "task": TASK, "data": str(arrays)}
    plain, _ = make_offer(model, adapter=ends(1, 1), recipe=[Drop(keep=1)], **options)
    step = Distill(steps=30, lr=1e-2, lm_weight=0, kd_weight=1)
    healed, record = make_offer(model, adapter=ends(1, 1), recipe=[Drop(keep=1), step], **options)
    near, far = ((logits(o.model) - logits(model)).norm() for o in (healed, plain))
    assert (
        near < 0.9 * far
        and sum(record.offers[0].verbatim_tensors.values()) < 0.2 * record.middle_parameters
    )


def test_tuning_beats_not_tuning(arrays: Path, processor: Any) -> None:
    model = classifier("vit")
    offer, record = make_offer(model, recipe=[Drop(keep=1)], task=TASK, processor=processor)
    options = TrainOptions(steps=40, batch_size=12, lr=3e-3)
    tuned = run_tune(offer, str(arrays), Full(), options=options, task=TASK, eval_data=str(arrays))
    assert tuned.evaluation is not None and tuned.evaluation.value > 0.8
    plugged = plug(model, tuned.delta, record)
    rows = rows_of(TASK, arrays, processor, plugged)
    assert TASK.evaluate(plugged, rows).value > 0.6
    with pytest.raises(OffsiteError, match="knows LABEL_0"):
        TASK.evaluate(classifier("vit", labels=2), rows)


def test_interrupted_tuning_with_augmentation_resumes_to_the_same_weights(
    interrupt: Interrupt, arrays: Path, processor: Any, tmp_path: Path
) -> None:
    offer, _ = make_offer(classifier("vit"), recipe=[Drop(keep=1)], task=TASK, processor=processor)
    options = TrainOptions(steps=12, batch_size=5, lr=1e-2, save_every=5)
    straight = tune(offer, str(arrays), Full(), options=options, task=TASK).values()

    work = tmp_path / "work"
    interrupt(ImageClassification, "loss", call=7)
    with pytest.raises(Interrupted, match="step 7 of 12"):
        tune(offer, str(arrays), Full(), options=options, task=TASK, work=work)
    options_again: dict[str, Any] = {"options": options, "task": TASK, "work": work, "resume": True}
    resumed = tune(offer, str(arrays), Full(), **options_again).values()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_bfloat16_offers_work(arrays: Path, processor: Any) -> None:
    model = classifier("beit").to(torch.bfloat16)
    offer, record = make_offer(model, recipe=[Drop(keep=1)], task=TASK, processor=processor)
    delta = tune(offer, str(arrays), Full(), options=SHORT, task=TASK)
    assert {entry.dtype for entry in delta.manifest.tensors.values()} == {"BF16"}
    plugged = plug(model, delta, record)
    assert {p.dtype for p in plugged.parameters()} == {torch.bfloat16}
    TASK.evaluate(plugged, rows_of(TASK, arrays, processor, plugged))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("red", "green")}, "shape"),
        ({"labels": ()}, "head is not that of its offer"),
        ({"labels": ("red", "red", "green")}, "same name"),
        ({"head": ("classifier.weight",)}, "head is not that of its offer"),
        ({"head": (), "labels": ()}, "does not produce"),
        ({"head": ("classifier.weight", "classifier.bias", "x")}, "not among its tensors"),
    ],
)
def test_heads_that_break_the_contract_are_refused(
    change: dict[str, Any], message: str, arrays: Path, processor: Any
) -> None:
    model = classifier("vit")
    offer, record = make_offer(model, recipe=[Drop(keep=1)], task=TASK, processor=processor)
    delta = tune(offer, str(arrays), Head(), options=SHORT, task=TASK)
    delta = replace(delta, manifest=delta.manifest.model_copy(update=change))
    with pytest.raises(OffsiteError, match=message):
        plug(model, delta, record)


def test_a_contract_for_another_head_is_refused(processor: Any, tmp_path: Path) -> None:
    offer, _ = make_offer(classifier("vit"), recipe=[Drop(keep=1)], task=TASK, processor=processor)
    contract = offer.manifest.contract.model_copy(update={"head": {}})
    offer.manifest = offer.manifest.model_copy(update={"contract": contract})
    offer.save(tmp_path / "offer")
    with pytest.raises(OffsiteError, match="its model's head"):
        Offer.load(tmp_path / "offer")


def test_head_needs_a_classifier() -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    with pytest.raises(OffsiteError, match="image classification"):
        Head().attach(transformers.LlamaForCausalLM(config), (0,))


def test_a_head_learns_at_its_own_rate(arrays: Path, processor: Any) -> None:
    """AdamW moves every number by at most its rate a step, so the rates show in how far they go."""
    model = classifier("vit")
    offer, _ = make_offer(model, adapter=ends(2, 1), recipe=[], task=TASK, processor=processor)
    options = replace(SHORT, lr=1e-6, head_lr=1e-2, warmup=0.0, schedule="constant")
    tuned = run_tune(offer, str(arrays), Full(), options=options, task=TASK)
    new = dict(tuned.model.named_parameters())
    moved = {n: (new[n] - p).abs().max().item() for n, p in offer.model.named_parameters()}
    head = moved.pop("classifier.weight"), moved.pop("classifier.bias")
    assert min(head) > 5e-3 and 1e-7 < max(moved.values()) < 1e-5
    with pytest.raises(OffsiteError, match="learning rate of 0"):
        replace(SHORT, head_lr=0.0)
