"""What a run was asked to do: everything that changes a result is part of it, and is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.compress.drop import Drop
from offsite.deltas.addition.learn_decoder import learn_decoder
from offsite.errors import OffsiteError
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from offsite.tasks.text.causal import CausalText
from offsite.training.identity import Identity
from offsite.training.options import TrainOptions
from offsite.training.resume import Interrupted
from offsite.tuner.tuning import run_tune
from tests.support.models import TEXT, language_model
from tests.support.signals import Interrupt

OPTIONS = TrainOptions(steps=4, batch_size=2, save_every=1)


def test_parts_that_differ_are_named() -> None:
    one = Identity.of(task={"name": "text", "max_length": 32}, data="ab", seed=0, size=(1, 2))
    assert one == Identity.of(
        seed=0, size=[1, 2], data="ab", task={"max_length": 32, "name": "text"}
    )
    two = one | Identity.of(task={"name": "text", "max_length": 16}, seed=1, more=None)
    assert one.difference(two) == ("task.max_length", "seed", "more")
    assert two.difference(two) == () and one.digest != two.digest and len(one.digest) == 24
    with pytest.raises(TypeError, match="Tensor has no identity"):
        Identity.of(rows=torch.zeros(1))


def test_tuning_resumes_with_the_same_text_task_alone(
    interrupt: Interrupt, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    offer, _ = make_offer(language_model("llama"), recipe=[Drop(keep=1)], processor=tokenizer)
    work = tmp_path / "work"
    interrupt(CausalText, "loss", call=2)
    with pytest.raises(Interrupted):
        run_tune(offer, text_file, task=CausalText(32), options=OPTIONS, work=work)
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "!")
    same: dict[str, Any] = {"data": text_file, "task": CausalText(32), "options": OPTIONS}
    for change, what in (
        ({"task": CausalText(16)}, "task.max_length"),
        ({"data": other}, "data"),
        ({"eval_data": other}, "eval_data"),
        ({"options": replace(OPTIONS, warmup=0.5, accumulate=2)}, "options.accumulate and another"),
        ({"dtype": torch.bfloat16}, "dtype"),
    ):
        with pytest.raises(OffsiteError, match=f"started with another {what}"):
            run_tune(offer, work=work, resume=True, **{**same, **change})
    same["options"] = replace(OPTIONS, save_every=7)  # has no part in the result
    assert run_tune(offer, work=work, resume=True, **same).history.steps == 4


def test_tuning_on_pictures_resumes_with_the_same_augmentation_alone(
    interrupt: Interrupt, tmp_path: Path
) -> None:
    pytest.importorskip("PIL", reason="pillow is not installed (extra 'vision')")
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(8) % 2)
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=4,
    )  # fmt: skip
    model = transformers.AutoModelForImageClassification.from_config(config)
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    name = "image-classification"
    offer, _ = make_offer(
        model, adapter=ends(1, 1), recipe=[Drop(keep=1)], processor=processor, task=load_task(name)
    )
    work, data = tmp_path / "work", tmp_path / "a.npz"
    task = load_task(name)
    interrupt(type(task), "loss", call=2)
    with pytest.raises(Interrupted):
        run_tune(offer, data, task=task, options=OPTIONS, work=work)
    for task, what in (
        (load_task(f"{name}:augment=none"), "task.augment"),
        (load_task(name, skip_bad=True), "task.skip_bad"),
    ):
        with pytest.raises(OffsiteError, match=f"started with another {what};"):
            run_tune(offer, data, task=task, options=OPTIONS, work=work, resume=True)


def test_a_decoder_resumes_with_the_same_tasks_alone(
    interrupt: Interrupt, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model, work = language_model("llama"), tmp_path / "work"
    sizes: dict[str, Any] = {"length": 2, "dim": 4, "hidden": 4, "processor": tokenizer}
    sizes |= {"options": OPTIONS, "work": work, "device": "cpu"}
    interrupt(CausalText, "loss", call=2)
    with pytest.raises(Interrupted):
        learn_decoder(model, [(CausalText(32), text_file)] * 2, **sizes)
    for task in (CausalText(16), load_task("chat", max_length=32)):
        with pytest.raises(OffsiteError, match="started with another tasks;"):
            rows = [{"input_ids": torch.arange(9), "labels": torch.arange(9)}] * 2
            learn_decoder(model, [(task, rows)] * 2, **sizes, resume=True)
