"""Offer, tune, plug: the whole exchange on every language family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.compress.distill import Distill
from offsite.compress.drop import Drop
from offsite.compress.step import Step
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.blocks import get_blocks
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks.data import rows_of
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.training.resume import Interrupted
from offsite.tuner.tuning import run_tune, tune
from tests.support.models import LANGUAGE, TEXT, inputs_for, language_model, output_of
from tests.support.signals import Interrupt

TASK = CausalText(max_length=32)
SHORT = TrainOptions(steps=3, batch_size=2, lr=1e-2)


def state(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("family", LANGUAGE)
def test_full_delta_carries_over_exactly(
    family: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model = language_model(family)
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    offer, record = make_offer(
        model, adapter=ends(2, 1), recipe=[Drop(keep=1)], processor=tokenizer
    )
    offer.save(tmp_path / "offer")
    record.save(tmp_path / "record.json")
    loaded = Offer.load(tmp_path / "offer")
    tuned = run_tune(loaded, text_file, Full(), options=SHORT, task=TASK)
    tuned.delta.save(tmp_path / "delta")
    delta = Delta.load(tmp_path / "delta")
    plugged = plug(model, delta, Record.load(tmp_path / "record.json"))
    for name, tensor in before.items():
        assert torch.equal(state(model)[name], tensor), "the owner's model must not change"
    for inner, outer in zip(loaded.manifest.adapter, (0, 1, 5), strict=True):
        emulator_block = get_blocks(tuned.model)[inner].state_dict()
        for name, tensor in get_blocks(plugged)[outer].state_dict().items():
            assert torch.equal(tensor, emulator_block[name])
    for middle in (2, 3, 4):
        for name, tensor in get_blocks(plugged)[middle].state_dict().items():
            assert torch.equal(tensor, get_blocks(model)[middle].state_dict()[name])
    batch = inputs_for(model)
    assert not torch.equal(output_of(plugged, batch), output_of(model, batch))
    ids = batch["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(
        plugged.generate(ids, **options), plugged.generate(ids, use_cache=False, **options)
    )


@pytest.mark.parametrize("family", LANGUAGE)
def test_lora_delta_merges_like_on_the_emulator(
    family: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model = language_model(family)
    offer, record = make_offer(model, adapter=(0, 3), recipe=[Drop(keep=2)], processor=tokenizer)
    offer.save(tmp_path / "offer")
    tuned = run_tune(
        Offer.load(tmp_path / "offer"), text_file, LoRA(rank=2), options=SHORT, task=TASK
    )
    tuned.delta.save(tmp_path / "delta")
    plugged = plug(model, Delta.load(tmp_path / "delta"), record)
    runner: Any = tuned.model
    merged = runner.merge_and_unload()
    for inner, outer in zip(offer.manifest.adapter, (0, 3), strict=True):
        for (name, a), b in zip(
            get_blocks(merged)[inner].named_parameters(),
            get_blocks(plugged)[outer].parameters(),
            strict=True,
        ):
            assert torch.equal(a, b), name
    from peft import PeftModel

    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "offer")
    by_peft = PeftModel.from_pretrained(fresh, tmp_path / "delta")
    batch = inputs_for(model)
    torch.testing.assert_close(output_of(by_peft, batch), output_of(tuned.model, batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [Full(), LoRA()])
@pytest.mark.parametrize("family", LANGUAGE)
def test_untuned_delta_plugs_to_the_model_bit_for_bit(
    family: str, method: Any, dtype: Any, tokenizer: Any
) -> None:
    model = language_model(family).to(dtype)
    offer, record = make_offer(
        model, adapter=ends(1, 1), recipe=[Drop(keep=2)], processor=tokenizer
    )
    from offsite.codec import to_json
    from offsite.exchange.delta import new_delta
    from offsite.tuner.preparing import private_copy, to_offer_dtypes
    from offsite.tuner.tuning import drop_unchanged

    attached = method.attach(private_copy(offer), offer.manifest.adapter)
    tensors = drop_unchanged(to_offer_dtypes(attached.tensors(), offer), offer)
    delta = new_delta(offer.manifest, tensors, to_json(method), peft_config=attached.peft_config())
    if method == Full():
        assert not tensors
    plugged = plug(model, delta, record)
    for (name, a), b in zip(model.named_parameters(), plugged.parameters(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("family", LANGUAGE)
def test_offers_save_and_load_bit_equal(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model = language_model(family)
    offer, _ = make_offer(model, adapter=ends(2, 2), recipe=[Drop(keep=1)], processor=tokenizer)
    offer.save(tmp_path / "offer")
    loaded = Offer.load(tmp_path / "offer")
    plain, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "offer", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = inputs_for(model)
    for other in (loaded.model, plain):
        assert torch.equal(output_of(other, batch), output_of(offer.model, batch))
        tied = other.get_output_embeddings().weight is other.get_input_embeddings().weight
        assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    text = (tmp_path / "offer" / "manifest.json").read_text() + (
        tmp_path / "offer" / "config.json"
    ).read_text()
    assert str(tmp_path) not in text


def test_tuning_beats_not_tuning_and_leaves_the_offer_alone(
    tokenizer: Any, text_file: Path
) -> None:
    model = language_model("llama")
    offer, record = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer)
    before = TASK.evaluate(offer.model, rows_of(TASK, text_file, tokenizer, offer.model)).value
    delta = tune(offer, text_file, Full(), options=TrainOptions(steps=30, lr=1e-2), task=TASK)
    after = TASK.evaluate(offer.model, rows_of(TASK, text_file, tokenizer, offer.model)).value
    assert before == after
    plugged = plug(model, delta, record)
    rows = rows_of(TASK, text_file, tokenizer, model)
    assert TASK.evaluate(plugged, rows).value < TASK.evaluate(model, rows).value - 0.5


@pytest.mark.parametrize("adapter", [ends(2, 2), (0, 2, 5)])
def test_distillation_brings_the_emulator_closer(
    adapter: Any, tokenizer: Any, text_file: Path
) -> None:
    model = language_model("llama")
    options: dict[str, Any] = {"adapter": adapter, "processor": tokenizer, "task": TASK}
    options["data"] = text_file
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    plain, _ = make_offer(model, recipe=[Drop(keep=1)], **options)
    recipe: list[Step] = [Drop(keep=1), Distill(steps=40, lr=1e-2, lm_weight=0)]
    healed, record = make_offer(model, recipe=recipe, **options)
    for name, tensor in before.items():
        assert torch.equal(state(model)[name], tensor)
    batch = {"input_ids": rows_of(TASK, text_file, tokenizer, model)[0]["input_ids"][None]}
    target = output_of(model, batch)
    distances = [(output_of(o.model, batch) - target).norm() for o in (healed, plain)]
    assert distances[0] < 0.8 * distances[1]
    assert record.offers[0].verbatim_tensors == {}


def test_expired_and_foreign_offers_are_refused(tokenizer: Any, text_file: Path) -> None:
    from datetime import UTC, datetime

    model = language_model("llama")
    old = datetime(2020, 1, 1, tzinfo=UTC)
    offer, _ = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer, expires=old)
    with pytest.raises(OffsiteError, match="expired"):
        tune(offer, text_file, task=TASK)


def test_a_clock_before_the_offer_was_made_cannot_judge_its_expiry(
    tokenizer: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from offsite.exchange import manifest

    today = manifest.now()
    late = today + timedelta(days=30)
    model = language_model("llama")
    offer, _ = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer, expires=late)
    monkeypatch.setattr(manifest, "now", lambda: today - timedelta(days=3000))
    with pytest.raises(OffsiteError, match="The clock of this machine says 20"):
        tune(offer, text_file, task=TASK)


def test_interrupted_tuning_resumes_to_the_same_weights(
    interrupt: Interrupt, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    offer, _ = make_offer(language_model("llama"), recipe=[Drop(keep=1)], processor=tokenizer)
    options = TrainOptions(steps=12, batch_size=2, lr=1e-2, save_every=5)
    straight = tune(offer, text_file, Full(), options=options, task=TASK).values()

    work = tmp_path / "work"
    interrupt(CausalText, "loss", call=7)
    with pytest.raises(Interrupted, match="step 7 of 12"):
        tune(offer, text_file, Full(), options=options, task=TASK, work=work)
    resumed = tune(
        offer, text_file, Full(), options=options, task=TASK, work=work, resume=True
    ).values()
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name
    assert len(TEXT) > 100
