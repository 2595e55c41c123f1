"""Every method through an offer and back; then several deltas on one model."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.deltas import METHODS
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugged import Plugged
from offsite.owner.plugging import keep_apart, merge_delta
from offsite.owner.serving import Served, load_plugged
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.exporting import plain_delta
from offsite.tuner.tuning import run_tune
from tests.support.methods import METHOD_CASES, small_model
from tests.support.models import inputs_for, output_of

TASK = CausalText(max_length=32)
SHORT = TrainOptions(steps=2, batch_size=2, lr=2e-2)
RACK = ("full", "lora", "masking", "bottleneck", "bottleneck-pfeiffer", "prefix", "prompt")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}


@cache
def offered(dtype: torch.dtype) -> Any:
    """A model, its record, and its offer as loaded from disk; nothing below changes any of them."""
    model = small_model("llama", dtype)
    offer, record = make_offer(model, adapter=ends(2, 1), recipe=[Drop(keep=1)])
    with tempfile.TemporaryDirectory() as folder:
        offer.save(Path(folder) / "offer")
        loaded = Offer.load(Path(folder) / "offer")
    return model, record, loaded


def exchange(
    name: str, folder: Path, tokenizer: Any, text: Path, dtype: Any = torch.float32
) -> Any:
    """Tune, save and load: the model, its record, the offer, what was tuned, the delta."""
    model, record, offer = offered(dtype)
    offer.processor = tokenizer
    tuned = run_tune(offer, text, METHOD_CASES[name], options=SHORT, task=TASK)
    tuned.delta.save(folder / "delta")
    return model, record, offer, tuned, Delta.load(folder / "delta")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in METHOD_CASES]
    + [(name, torch.bfloat16) for name in METHOD_CASES if name in METHODS],
)
def test_through_an_offer_and_back(
    name: str, dtype: torch.dtype, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model, record, offer, tuned, delta = exchange(name, tmp_path, tokenizer, text_file, dtype)
    method, batch = METHOD_CASES[name], inputs_for(model)
    before = output_of(model, batch)
    plugged = merge_delta(model, delta, record)
    assert torch.equal(output_of(model, batch), before), "the owner's model must not change"
    after = output_of(plugged, batch)
    assert after.dtype == dtype and not torch.equal(after, before)
    inner = tuned.attached.merge() if method.merges else tuned.model
    for mine, theirs in zip(offer.manifest.adapter, (0, 1, 5), strict=True):
        state = get_blocks(inner)[mine].to(dtype).state_dict()
        for key, value in get_blocks(plugged)[theirs].state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=TOLERANCE[dtype])
    ids = batch["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = plugged.generate(ids, **options)
    assert cached.shape == (2, 16)
    keep_apart(model, delta, record).save(tmp_path / "plugged")
    served: Any = load_plugged(small_model("llama", dtype), tmp_path / "plugged")
    assert torch.equal(served.generate(ids, **options), cached)
    torch.testing.assert_close(output_of(served, batch), after, rtol=0, atol=TOLERANCE[dtype])
    if method.merges:
        plain = plain_delta(delta, offer)
        assert plain.manifest.method["kind"] == "full"
        plain.save(tmp_path / "plain")
        other = dict(merge_delta(model, Delta.load(tmp_path / "plain"), record).named_parameters())
        for key, value in plugged.named_parameters():
            assert torch.equal(value, other[key]), key


@pytest.fixture(scope="module")
def rack(tmp_path_factory: Any, tokenizer: Any) -> dict[str, Plugged]:
    """Deltas of several data owners of one model."""
    folder = tmp_path_factory.mktemp("rack")
    (folder / "train.txt").write_text("the cat sat on the mat and sang of it. " * 40)
    deltas = {}
    for name in RACK:
        (folder / name).mkdir()
        model, record, *_, delta = exchange(name, folder / name, tokenizer, folder / "train.txt")
        deltas[name] = keep_apart(model, delta, record)
    return deltas


def test_switching_is_exact_and_leaves_no_trace(rack: dict[str, Plugged]) -> None:
    model = small_model("llama")
    batch = inputs_for(model)
    plain = output_of(model, batch)
    alone = {}
    for name, delta in rack.items():
        single = Served(small_model("llama"))
        single.add(name, delta)
        alone[name] = output_of(single.switch(name), batch)
        assert not torch.equal(alone[name], plain)
    served = Served(model)
    for name, delta in rack.items():
        served.add(name, delta)
        assert torch.equal(output_of(model, batch), plain)
    for name in [*rack, *reversed(rack)]:
        assert torch.equal(output_of(served.switch(name), batch), alone[name])
    assert torch.equal(output_of(served.switch(), batch), plain)
    for key, value in small_model("llama").state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_adding_with_weights_is_the_sum_of_differences(rack: dict[str, Plugged]) -> None:
    served = Served(small_model("llama"))
    for name in ("full", "lora"):
        served.add(name, rack[name])
    key = "model.layers.5.mlp.up_proj.weight"
    values = {}
    for names in ((), ("full",), ("lora",)):
        values[names] = served.switch(*names).get_parameter(key).detach().clone()
    mixed = served.switch(full=0.25, lora=-0.5).get_parameter(key)
    base = values[()]
    slow = base + 0.25 * (values[("full",)] - base) - 0.5 * (values[("lora",)] - base)
    torch.testing.assert_close(mixed, slow)
    served.remove("full")
    assert served.active == {"lora": -0.5}


def test_what_stacks_and_what_does_not(rack: dict[str, Plugged]) -> None:
    model = small_model("llama")
    served = Served(model)
    for name, delta in rack.items():
        served.add(name, delta)
    batch = inputs_for(model)
    served.switch("lora", "masking", "bottleneck", "prefix", "prompt")
    everything = output_of(model, batch)
    for bad, message in (
        ({"bottleneck": 1.0, "bottleneck-pfeiffer": 1.0}, "both need"),
        ({"prefix": 0.5}, "must be 1, not 0.5"),
        ({"missing": 1.0}, "There is no delta"),
        ({"prefix": 1.0, "lora": "half"}, "a finite number"),
        ({"lora": float("nan")}, "a finite number"),
    ):
        with pytest.raises(OffsiteError, match=message):
            served.switch(**bad)
        assert torch.equal(output_of(model, batch), everything), "a refusal changes nothing"
    with pytest.raises(OffsiteError, match="already"):
        served.add("lora", rack["lora"])
    wrong = small_model("llama")
    with torch.no_grad():
        wrong.get_parameter("model.norm.weight").add_(1)
    with pytest.raises(OffsiteError, match="other weights"):
        Served(wrong).add("lora", rack["lora"])


@pytest.mark.parametrize("name", ["bottleneck", "prefix", "prompt"])
def test_attached_tensors_that_do_not_fit_leave_the_model_alone(
    name: str, rack: dict[str, Plugged]
) -> None:
    served, good = Served(small_model("llama")), rack[name]
    served.add("lora", rack["lora"])
    served.switch("lora")
    before = output_of(served.model, inputs_for(served.model))
    first = next(iter(good.tensors))
    rest = {key: value for key, value in good.tensors.items() if key != first}
    for bad, message in (
        (replace(good, tensors=rest), "lacks 1"),
        (replace(good, tensors={**rest, first: torch.zeros(3)}), "shape"),
        (replace(good, tensors={**good.tensors, "x": torch.zeros(3)}), "does not produce"),
        (replace(good, adapter=(0, 99)), "does not have"),
    ):
        with pytest.raises(OffsiteError, match=message):
            served.add("bad", bad)
        assert torch.equal(output_of(served.model, inputs_for(served.model)), before)
    assert served.deltas.keys() == {"lora"}


def test_a_folder_with_other_tensors_is_refused(rack: dict[str, Plugged], tmp_path: Path) -> None:
    replace(rack["lora"], method=METHODS["lora"](rank=4)).save(tmp_path / "odd")
    model = small_model("llama")
    with pytest.raises(OffsiteError, match="shape"):
        load_plugged(model, tmp_path / "odd")
    with pytest.raises(OffsiteError, match=r"plugged\.json"):
        load_plugged(model, tmp_path)
