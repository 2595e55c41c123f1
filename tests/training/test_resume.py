"""Tuning that Ctrl-C interrupts and ``resume`` continues gives the delta of an unbroken run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.deltas.addition.learn_decoder import learn_decoder
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.exchange.delta_contents import WEIGHTS
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.training.resume import Interrupted
from offsite.tuner.tuning import tune
from tests.support.methods import DECODER, METHOD_CASES
from tests.support.models import language_model
from tests.support.signals import Interrupt

TASK = CausalText(max_length=32)
OPTIONS = TrainOptions(steps=12, batch_size=2, lr=5e-2, save_every=5)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        "diff_pruning",
        "masking",
        "intrinsic",
        "intrinsic_prompt",
        "bottleneck",
        "prefix",
        "dropout",
        "bottleneck+prompt+bitfit",
    ],
)
def test_the_delta_is_that_of_an_unbroken_run(
    name: str, interrupt: Interrupt, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    method = LoRA(rank=2, dropout=0.3) if name == "dropout" else METHOD_CASES[name]
    offer, _ = make_offer(
        language_model("llama"),
        recipe=[Drop(keep=1)],
        processor=tokenizer,
        side={"prompt_decoder": DECODER},
    )
    work, whole = tmp_path / "work", replace(OPTIONS, lr=None) if "+" in name else OPTIONS
    interrupt(CausalText, "loss", call=7)
    with pytest.raises(Interrupted, match="step 7 of 12"):
        tune(offer, text_file, method, options=whole, task=TASK, work=work)
    runs: dict[str, dict[str, Any]]
    runs = {"straight": {}, "resumed": {"work": work, "resume": True}, "untuned": {"steps": 1}}
    for run, more in runs.items():
        options = TrainOptions(steps=1, batch_size=2, lr=1e-9) if more.pop("steps", 0) else whole
        torch.manual_seed(len(run))  # a fresh process starts anywhere
        delta = tune(offer, text_file, method, options=options, task=TASK, **more)
        delta.save(tmp_path / run)
    file = next((tmp_path / "straight").glob("*.safetensors")).name
    assert file == WEIGHTS or name == "dropout"
    found = {run: sha256(tmp_path / run / file) for run in runs}
    assert found["straight"] == found["resumed"] != found["untuned"]


def test_a_decoder_is_that_of_an_unbroken_run(interrupt: Interrupt, tmp_path: Path) -> None:
    model = language_model("llama")
    rows = [torch.arange(12) * k % 13 + 20 for k in (1, 2, 3)]
    tasks = [[{"input_ids": row, "labels": row}] * 8 for row in rows]
    sizes: Any = {"length": 4, "dim": 10, "hidden": 8, "options": OPTIONS, "device": "cpu"}
    straight = learn_decoder(model, [(TASK, data) for data in tasks], **sizes)
    sizes |= {"work": tmp_path / "work"}
    interrupt(CausalText, "loss", call=7)
    with pytest.raises(Interrupted, match="step 7 of 12"):
        learn_decoder(model, [(TASK, data) for data in tasks], **sizes)
    resumed = learn_decoder(model, [(TASK, data) for data in tasks], **sizes, resume=True)
    assert all(torch.equal(straight[name], value) for name, value in resumed.items())
