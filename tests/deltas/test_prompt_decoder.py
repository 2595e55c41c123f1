"""A prompt decoder in an offer: learnt, shipped, verified, tuned through, and plugged."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.cli import main
from offsite.compress.drop import Drop
from offsite.deltas import IntrinsicPrompt
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.file_set import MANIFEST, hash_files
from offsite.exchange.offer import Offer
from offsite.exchange.side import (
    SideTensors,
    attach_side,
    read_side,
    save_side,
    side_file,
    sides_of,
)
from offsite.model.split import ends
from offsite.model.tensors import describe, save_tensors
from offsite.owner.offering import make_offer
from offsite.owner.plugging import keep_apart, plug
from offsite.owner.serving import load_plugged
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import tune
from tests.support.methods import DECODER as TENSORS
from tests.support.models import inputs_for, language_model, output_of, vision_model

TASK = CausalText(max_length=32)
NAME = "prompt_decoder"
DECODER, GROUP = side_file(NAME), SideTensors(NAME, TENSORS)
SHORT = TrainOptions(steps=2, batch_size=2)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: Any, tokenizer: Any) -> tuple[Path, Any]:
    """A folder with ``offer`` and ``delta``, and the owner's record."""
    folder = tmp_path_factory.mktemp("exchange")
    (folder / "train.txt").write_text("the cat sat on the mat and sang of it. " * 40)
    offer, record = make_offer(
        language_model("llama"), adapter=ends(2, 1), recipe=[Drop(keep=1)], processor=tokenizer,
        side={NAME: TENSORS},
    )  # fmt: skip
    offer.save(folder / "offer")
    loaded = Offer.load(folder / "offer")
    delta = tune(loaded, folder / "train.txt", IntrinsicPrompt(), options=SHORT, task=TASK)
    delta.save(folder / "delta")
    return folder, record


def test_the_offer_brings_the_decoder_bit_for_bit(exchange: tuple[Path, Any]) -> None:
    folder, _ = exchange
    for dtype in (None, torch.bfloat16):
        found = sides_of(Offer.load(folder / "offer", dtype=dtype).model)[NAME].tensors
        assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    manifest = json.loads((folder / "offer" / MANIFEST).read_text())
    assert set(manifest["prompt_decoder"]) == set(TENSORS) and DECODER in manifest["files"]
    assert not set(TENSORS) & set(manifest["tensors"])
    plain, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "offer", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not sides_of(plain)
    delta = Delta.load(folder / "delta")
    assert delta.values().keys() == {"intrinsic_prompt"} and delta.bytes == 40


def test_plugging_needs_the_very_decoder_and_serving_needs_none(
    exchange: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, record = exchange
    model, delta = language_model("llama"), Delta.load(folder / "delta")
    with pytest.raises(OffsiteError, match="--prompt-decoder"):
        plug(model, delta, record)
    other = TENSORS | {"inner": TENSORS["inner"] + 1}
    with pytest.raises(OffsiteError, match="--prompt-decoder"):
        plug(model, delta, record, side={NAME: other})
    wide = language_model("llama", hidden_size=32)
    with pytest.raises(OffsiteError, match="width 32"):
        attach_side(wide, GROUP)
    batch = inputs_for(model)
    plain = output_of(model, batch)
    tuned = output_of(plug(model, delta, record, side={NAME: folder / "offer"}), batch)
    assert not torch.equal(tuned, plain)
    keep_apart(model, delta, record, side={NAME: TENSORS}).save(tmp_path / "plugged")
    assert torch.equal(output_of(load_plugged(model, tmp_path / "plugged"), batch), tuned)
    from peft import PeftModel

    opened = PeftModel.from_pretrained(language_model("llama"), tmp_path / "plugged").eval()
    torch.testing.assert_close(output_of(opened, batch)[:, 3:], tuned)


def test_an_offer_without_a_decoder_says_so(exchange: tuple[Path, Any], tokenizer: Any) -> None:
    folder, _ = exchange
    offer, record = make_offer(language_model("llama"), adapter=ends(2, 1), processor=tokenizer)
    assert "prompt_decoder" not in offer.manifest.model_dump_json()
    with pytest.raises(OffsiteError, match="ask the owner for an offer with a decoder"):
        tune(offer, folder / "train.txt", IntrinsicPrompt(), options=SHORT, task=TASK)
    delta = Delta.load(folder / "delta")
    entry = record.offers[0].model_copy(
        update={"offer": delta.manifest.parent, "emulator_adapter": delta.manifest.adapter}
    )
    with pytest.raises(OffsiteError, match="shipped no prompt decoder"):
        plug(language_model("llama"), delta, record.model_copy(update={"offers": (entry,)}))
    with pytest.raises(OffsiteError, match="works with a language model"):
        make_offer(vision_model("vit"), side={NAME: TENSORS})


def replaced(declare: bool = True, **changes: torch.Tensor) -> Callable[[Path], None]:
    """Put other tensors into the decoder's file, and where ``declare``, into the manifest."""

    def attack(folder: Path) -> None:
        tensors = TENSORS | changes
        save_tensors(tensors, folder / DECODER)
        if declare:
            manifest = json.loads((folder / MANIFEST).read_text())
            entries = {name: e.model_dump() for name, e in describe(tensors).items()}
            (folder / MANIFEST).write_text(json.dumps(manifest | {"prompt_decoder": entries}))

    return attack


def undeclared(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["prompt_decoder"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda folder: (folder / DECODER).unlink(), "lacks the"),
    "not declared": (undeclared, "would not all read"),
    "NaN": (replaced(inner_bias=torch.full((6,), torch.nan)), "NaN or infinity"),
    "infinity": (replaced(outer=torch.full((3, 16, 6), torch.inf)), "NaN or infinity"),
    "another width": (replaced(outer=torch.zeros(3, 8, 6)), "embeddings of width 16"),
    "another bias": (replaced(outer_bias=torch.zeros(4, 16)), "not make a prompt"),
    "hidden sizes that differ": (replaced(inner=torch.zeros(7, 10)), "not make a prompt"),
    "integers": (
        replaced(inner=torch.zeros(6, 10, dtype=torch.int32)),
        "not make a prompt",
    ),
    "half precision": (replaced(inner=torch.zeros(6, 10).half()), "not make a prompt"),
    "one tensor more": (replaced(extra=torch.zeros(2)), "not make a prompt"),
    "shapes that lie": (replaced(False, inner=torch.zeros(6, 11)), "not those of the manifest"),
    "cut short": (lambda f: os.truncate(f / DECODER, 200), "not an acceptable safetensors"),
    "no safetensors": (lambda f: (f / DECODER).write_bytes(b"\x80\x04."), "not an acceptable"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_decoder_is_refused(
    name: str, exchange: tuple[Path, Any], tmp_path: Path
) -> None:
    attack, message = ATTACKS[name]
    folder = Path(shutil.copytree(exchange[0] / "offer", tmp_path / "offer"))
    attack(folder)
    if (folder / DECODER).exists():
        with pytest.raises(OffsiteError, match=r"SHA-256|truncated|safetensors|manifest|read"):
            Offer.load(folder)  # with the old hashes, or declaring what is not there
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {n: e.model_dump() for n, e in hash_files(folder).items()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(OffsiteError, match=message):
        Offer.load(folder)


def test_a_file_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    save_side(GROUP, tmp_path / "good.safetensors")
    found = read_side(NAME, tmp_path / "good.safetensors").tensors
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    with pytest.raises(OffsiteError, match="exists already"):
        save_side(GROUP, tmp_path / "good.safetensors")
    save_tensors({"inner": torch.zeros(2, 2)}, tmp_path / "bad.safetensors")
    with pytest.raises(OffsiteError, match="not make a prompt"):
        read_side(NAME, tmp_path / "bad.safetensors")
    with pytest.raises(OffsiteError, match="offsite prompt-decoder"):
        read_side(NAME, tmp_path)


def test_the_round_trip_by_commands(
    model_folder: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "the cat", "completion": " sat"}\n' * 9)

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["offsite", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code

    model, short = model_folder("llama"), ("--steps", 2, "--max-length", 32, "--device", "cpu")
    decoder, record = tmp_path / "decoder.safetensors", tmp_path / "offer.record.json"
    sizes = ("--dim", 7, "--length", 3, "--hidden", 5)
    data = ("--data", text_file, "--data", f"text={other}")
    run("prompt-decoder", model, *data, "--out", decoder, *sizes, *short)
    run("offer", model, "--out", tmp_path / "offer", "--keep", 1, "--prompt-decoder", decoder)
    assert (tmp_path / "offer" / DECODER).read_bytes() == decoder.read_bytes()
    tuned = ("--delta", "intrinsic_prompt", "--out", tmp_path / "delta", *short)
    run("tune", tmp_path / "offer", "--data", text_file, *tuned)
    assert Delta.load(tmp_path / "delta").values()["intrinsic_prompt"].shape == (7,)
    plugged = ("--record", record, "--as-adapter", "--out", tmp_path / "plugged")
    run("plug", model, tmp_path / "delta", *plugged, "--prompt-decoder", tmp_path / "offer")
    load_plugged(transformers.AutoModelForCausalLM.from_pretrained(model), tmp_path / "plugged")
    assert not (tmp_path / "decoder.safetensors.work").exists()
