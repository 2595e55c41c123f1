"""Decoding of a classifier of pictures: its teacher, what it is taught on, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.checkpoint import load_model
from offsite.model.heads import labels_of
from offsite.owner.decode import Decode
from offsite.owner.mixture import Mixture, with_delta
from tests.support import Run
from tests.support.models import VISION, backbone
from tests.support.pictures import NAMES, image_processor, logits, picture_folders, write_arrays


@pytest.mark.parametrize("family", VISION)
def test_the_command_teaches_a_backbone_what_the_tuned_emulator_says(
    family: str, run: Run, tmp_path: Path
) -> None:
    model, record = tmp_path / "model", tmp_path / "record.json"
    offer, delta = tmp_path / "offer", tmp_path / "delta"
    backbone(family).save_pretrained(model)
    image_processor().save_pretrained(model)
    private, public = write_arrays(tmp_path), picture_folders(tmp_path / "public", "train")
    task = ("--task", "image-classification")
    words: tuple[Any, ...] = (*task, "--adapter", "ends:1,1", "--keep", 1, "--record", record)
    assert run("offer", model, "--out", offer, "--reach", "all", *words)[0] == 0
    lora = ("--delta", "lora:rank=2", "--reach", "all", "--steps", 12, "--lr", "1e-2")
    made = run("tune", offer, "--data", private, "--out", delta, *lora)
    assert made[0] == 0, made[2]
    plug = ("plug", model, delta, "--record", record)
    status, _, error = run(*plug, "--out", tmp_path / "no", "--decode", "sample", "--offer", offer)
    assert status == 2 and "cannot draw pictures" in error
    assert run(*plug, "--out", tmp_path / "plain")[0] == 0
    decode = ("--decode", public, "--offer", offer, "--decode-strength", 1, "--decode-steps", 40)
    made = run(*plug, "--out", tmp_path / "decoded", "--again", *decode)
    assert made[0] == 0, made[2]
    auto = transformers.AutoModelForImageClassification
    plain, student = (auto.from_pretrained(tmp_path / x).eval() for x in ("plain", "decoded"))
    assert labels_of(student) == NAMES
    loaded, given = Offer.load(offer), Delta.load(delta)
    full = load_model(model, "AutoModelForImageClassification")
    teacher = Mixture.of(full, plain, loaded, given, 1.0)
    torch.testing.assert_close(logits(teacher), logits(with_delta(loaded, given)))
    data = Decode(str(public)).data("image-classification")
    assert data is not None
    rows = Decode(str(public)).rows(plain, image_processor(), data)
    batch = {"pixel_values": torch.stack([rows[i]["pixel_values"] for i in range(len(rows))])}
    wanted = teacher(**batch).logits.softmax(-1)
    with torch.no_grad():
        far, near = (
            torch.nn.functional.kl_div(m(**batch).logits.log_softmax(-1), wanted, reduction="sum")
            for m in (plain, student)
        )
    assert near < 0.5 * far
