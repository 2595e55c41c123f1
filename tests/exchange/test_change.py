"""What a delta may do to a model is bounded after the merge, in the dtype that is written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import offsite as ot
from offsite.deltas import parse_method
from offsite.exchange.bounds import OutOfBounds, check_change
from offsite.exchange.delta import new_delta
from offsite.exchange.manifest import DeltaManifest, read_manifest
from offsite.lab.setting import Setting
from offsite.lab.stages import plugged
from offsite.model.blocks import get_blocks
from offsite.owner.plugging import keep_apart
from offsite.owner.writing import write_plugged
from offsite.tuner import limits
from offsite.tuner.importing import import_peft
from offsite.tuner.preparing import private_copy
from tests.support.models import language_model


def lora(offer: ot.Offer, alpha: float, scale: float) -> ot.Delta:
    """A LoRA delta of rank 1 with random tensors."""
    method = parse_method({"kind": "lora", "rank": 1, "alpha": alpha})
    attached = method.attach(private_copy(offer), offer.manifest.adapter)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(value.shape, generator=draw) * scale
        for name, value in sorted(attached.tensors().items())
    }
    config = attached.peft_config()
    json_form = {"kind": "lora", "rank": 1, "alpha": alpha}
    return new_delta(offer.manifest, tensors, json_form, peft_config=config)


@pytest.fixture(scope="module")
def pair() -> Any:
    """A model, an offer of it, and its record in memory."""
    model = language_model("llama")
    return model, *ot.make_offer(model, recipe=[ot.Drop(keep=1)])


def test_a_small_norm_cannot_hide_a_large_change(pair: Any) -> None:
    model, offer, record = pair
    assert ot.plug(model, lora(offer, 16, 0.05), record) is not None
    big = lora(offer, 4096, 1.0)
    with pytest.raises(ot.OffsiteError, match=r"but at most .* is plugged"):
        ot.plug(model, big, record)
    with pytest.raises(ot.OffsiteError, match=r"but at most .* is plugged"):
        keep_apart(model, big, record)


def test_each_middle_tensor_is_bounded_too(pair: Any) -> None:
    """With a reach of all blocks, a change may not hide in one tensor of the middle."""
    model = pair[0]
    offer, record = ot.make_offer(model, recipe=[ot.Drop(keep=1)], reach="all")
    blocks = tuple(range(len(get_blocks(offer.model))))
    method = parse_method({"kind": "lora", "rank": 1})
    attached = method.attach(private_copy(offer), blocks)
    middle = next(index for index in blocks if index not in offer.manifest.adapter)
    for size, allowed in ((0.05, True), (8.0, False)):
        draw = torch.Generator().manual_seed(0)
        tensors = {
            name: torch.randn(value.shape, generator=draw)
            * (size if f".{middle}." in name else 0.0)
            for name, value in sorted(attached.tensors().items())
        }
        delta = new_delta(
            offer.manifest, tensors, {"kind": "lora", "rank": 1}, reach="all",
            peft_config=attached.peft_config(),
        )  # fmt: skip
        norm = sum(float(value.square().sum()) for value in tensors.values()) ** 0.5
        assert norm < offer.manifest.contract.max_norm  # the norm of all is no reason
        if allowed:
            assert ot.plug(model, delta, record) is not None
        else:
            with pytest.raises(OutOfBounds, match=r"but at most .* is plugged"):
                ot.plug(model, delta, record)


@pytest.mark.parametrize(("kind", "soon", "looks"), [("full", 0.0, 3), ("lora", 1e9, 1)])
def test_tuning_says_early_what_the_owner_would_refuse(
    kind: str, soon: float, looks: int, pair: Any, capfd: Any, tokenizer: Any, text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At a tenth, at a half and at the end; a run that is soon at its end only there."""
    monkeypatch.setattr(limits, "SOON", soon)
    seen: list[str] = []

    def counted(before: Any, after: Any) -> None:
        seen.append(kind)
        check_change(before, after)

    monkeypatch.setattr("offsite.tuner.limits.check_change", counted)
    _, offer, _ = pair
    offer = ot.Offer(offer.model, offer.manifest, tokenizer)
    for rate, refused in ((1e-4, 0), (50.0, 1)):
        options = ot.TrainOptions(steps=20, lr=rate, batch_size=2, warmup=0)
        weights = [p.clone() for p in offer.model.parameters()]
        capfd.readouterr()
        seen.clear()
        ot.tune(
            offer, text_file, parse_method({"kind": kind}), options=options, device="cpu",
            task=ot.load_task("text", max_length=16),
        )  # fmt: skip
        assert capfd.readouterr().err.count("would refuse this delta") == refused
        assert len(seen) == (1 if refused else looks)
        pairs = zip(weights, offer.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_lab_scores_no_delta_that_plug_refuses(
    pair: Any, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    plan = ot.Plan(
        model=str(model_folder("llama")), eval_data=str(text_file), data=str(text_file),
        max_length=16, recipes={"one": ot.Recipe((ot.Drop(keep=1),))},
    )  # fmt: skip
    setting = Setting(plan, "cpu")
    offer, record = ot.make_offer(setting.model, recipe=[ot.Drop(keep=1)])
    assert plugged(setting, lora(offer, 16, 0.05), record)["value"] is not None
    big = lora(offer, 4096, 1.0)
    with pytest.raises(OutOfBounds):
        ot.plug(setting.model, big, record)
    assert plugged(setting, big, record) == {"value": None}


def test_what_float16_cannot_hold_is_not_written(pair: Any, tmp_path: Path) -> None:
    half = language_model("llama").half()
    half.save_pretrained(tmp_path / "model")
    offer, record = ot.make_offer(tmp_path / "model", recipe=[ot.Drop(keep=1)])
    record.save(tmp_path / "record.json")
    delta = lora(offer, 4096, 6.0)
    with pytest.raises(ot.OffsiteError, match=r"not finite in torch\.float16|but at most"):
        write_plugged(tmp_path / "out", tmp_path / "model", delta, record)
    assert not (tmp_path / "out").exists()
    assert not ot.Record.load(tmp_path / "record.json").offers[0].accepted


def test_traps_in_size_are_refused_in_a_second(pair: Any, tmp_path: Path) -> None:
    _, offer, _ = pair
    lora(offer, 16, 0.05).save(tmp_path / "delta")
    config = tmp_path / "delta" / "adapter_config.json"
    good = json.loads(config.read_text())
    start = time.monotonic()
    config.write_text(json.dumps({**good, "r": 2**26}))
    with pytest.raises(ot.OffsiteError, match="rank 67108864"):
        import_peft(offer, tmp_path / "delta")
    manifest = json.loads((tmp_path / "delta" / "manifest.json").read_text())
    os.truncate(config, 2**36)
    manifest["files"]["adapter_config.json"] = {"size": 2**36, "sha256": "0" * 64}
    (tmp_path / "delta" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ot.OffsiteError, match="holes"):
        read_manifest(tmp_path / "delta", DeltaManifest)
    assert time.monotonic() - start < 5  # a second, on a machine that does nothing else


def test_a_peft_configuration_is_held_to_its_tensors(pair: Any, tmp_path: Path) -> None:
    _, offer, _ = pair
    delta = lora(offer, 16, 0.05)
    assert delta.peft_config is not None
    delta.peft_config = json.dumps({**json.loads(delta.peft_config), "r": 10**9})
    delta.save(tmp_path / "delta")
    with pytest.raises(ot.OffsiteError, match="peft configuration sets 'r'"):
        ot.Delta.load(tmp_path / "delta")


def test_integer_weights_count_as_what_they_stand_for() -> None:
    model = language_model("llama", hidden_size=64, intermediate_size=128)
    bounds = {}
    for name, recipe in {
        "plain": [],
        "int8": [ot.Quantise(bits=8)],
        "int4": [ot.Quantise(bits=4)],
    }.items():
        offer, _ = ot.make_offer(model, adapter=ot.ends(1, 1), recipe=recipe, reach="all")
        bounds[name] = offer.manifest.contract
    assert bounds["int8"].max_bytes == bounds["int4"].max_bytes == bounds["plain"].max_bytes
    for name in ("int8", "int4"):
        assert bounds[name].max_norm == pytest.approx(bounds["plain"].max_norm, rel=0.02)
