"""Every method on one model: which can work on it, and all of them through the lab."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from offsite.cli import main
from offsite.deltas import METHODS
from offsite.deltas.fitting import misfits
from offsite.exchange.side import SideTensors, save_side
from tests.support.methods import DECODER as TENSORS
from tests.support.models import language_model, vision_model

TEXT, IMAGES = "AutoModelForCausalLM", "AutoModelForImageClassification"


def test_misfits_are_found_without_weights(tmp_path: Path) -> None:
    language_model("llama", attention_bias=False).save_pretrained(tmp_path / "llama")
    language_model("gpt2").save_pretrained(tmp_path / "gpt2")
    vision_model("vit").save_pretrained(tmp_path / "vit")
    save_side(SideTensors("prompt_decoder", TENSORS), tmp_path / "decoder.safetensors")
    for name in ("llama", "gpt2"):
        (tmp_path / name / "model.safetensors").unlink()  # an image model's header is looked at
    cases: list[tuple[str, str, Path | None, set[str]]] = [
        ("llama", TEXT, None, {"bitfit", "intrinsic_prompt", "head"}),
        ("llama", TEXT, tmp_path / "decoder.safetensors", {"bitfit", "head"}),
        ("gpt2", TEXT, None, {"loha", "lokr", "oft", "intrinsic_prompt", "head"}),
        ("vit", IMAGES, None, {"prompt", "intrinsic_prompt"}),
    ]
    for name, auto_class, decoder, refused in cases:
        found = misfits(str(tmp_path / name), auto_class, "0,1,5", {"prompt_decoder": decoder})
        assert found.keys() == METHODS.keys()
        assert {kind for kind, reason in found.items() if reason is not None} == refused


def test_the_lab_runs_all_that_fit_and_names_the_others(
    model_folder: Any,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = model_folder("llama", attention_bias=False)
    save_side(SideTensors("prompt_decoder", TENSORS), tmp_path / "decoder.safetensors")
    text_file.write_text(text_file.read_text()[:400])
    words = ["offsite", "lab", model, "--data", text_file, "--eval-data", text_file, "--keep", 1]
    words += ["--delta", "lora+prefix", "--delta", "all", "--steps", 1, "--max-length", 32]
    words += [
        "--device",
        "cpu",
        "--out",
        tmp_path / "lab",
        "--prompt-decoder",
        tmp_path / "decoder.safetensors",
    ]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert not end.value.code, err
    said = [line for line in err.splitlines() if line.startswith("skip")]
    assert [line.split()[1] for line in said] == ["bitfit:", "head:"] and "use lora" in said[0]
    assert "what each delta takes" in out and "tune memory" in out
    rows = json.loads((tmp_path / "lab" / "results.json").read_text())["rows"]
    assert {row["delta"] for row in rows} == {*METHODS, "lora+prefix"} - {"bitfit", "head"}
    for row in rows:
        assert len(row["scores"]) == 6 and row["seconds_tune"] > 0 and row["memory_tune"] > 10**6
        assert row["bytes_delta"] > 0 and row["trainable"] > 0
    by_delta = {row["delta"]: row for row in rows}
    assert by_delta["intrinsic_prompt"]["bytes_delta"] == 40
    masked, full = by_delta["masking"], by_delta["full"]
    assert masked["bytes_delta"] * 8 == masked["trainable"] < full["trainable"]
