"""The commands a user types, from the offer to the plugged model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.support import Run


@pytest.fixture
def exchange(run: Run, model_folder: Any, text_file: Path, tmp_path: Path) -> Path:
    """A folder with model, offer, record and a LoRA delta, made by the commands."""
    model = model_folder("llama")
    (tmp_path / "model").symlink_to(model)
    words = ["--adapter", "ends:2,2", "--keep", 1, "--json"]
    status, _, err = run("offer", model, "--out", tmp_path / "offer", *words)
    assert status == 0, err
    words = ["--steps", 3, "--max-length", 32, "--delta", "lora:rank=2", "--device", "cpu"]
    delta = ("tune", tmp_path / "offer", "--data", text_file, "--out", tmp_path / "delta")
    status, _, err = run(*delta, *words)
    assert status == 0, err
    return tmp_path


def test_round_trip_by_commands(run: Run, exchange: Path, text_file: Path) -> None:
    record, model = exchange / "offer.record.json", exchange / "model"
    plug = ("plug", model, exchange / "delta", "--record", record)
    status, out, err = run(*plug, "--out", exchange / "tuned", "--json")
    assert status == 0 and json.loads(out)["form"] == "a plain transformers checkpoint", err
    tuned, info = transformers.AutoModelForCausalLM.from_pretrained(
        exchange / "tuned", output_loading_info=True
    )
    assert not info["missing_keys"] and tuned.config.num_hidden_layers == 6
    before = load_file(model / "model.safetensors")
    after = load_file(exchange / "tuned" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and {int(n.split(".")[2]) for n in changed} == {0, 1, 4, 5}

    status, _, err = run(*plug, "--out", exchange / "again")
    assert status == 2 and "plugged already" in err and not (exchange / "again").exists()
    status, _, err = run(*plug, "--out", exchange / "adapter", "--as-adapter", "--again")
    assert status == 0, err
    from peft import PeftModel

    full = transformers.AutoModelForCausalLM.from_pretrained(model)
    served = PeftModel.from_pretrained(full, exchange / "adapter").merge_and_unload()
    for name, tensor in served.named_parameters():
        torch.testing.assert_close(tensor, dict(tuned.named_parameters())[name])

    score = ("score", model, exchange / "offer", exchange / "tuned", "--data", text_file, "--json")
    status, out, err = run(*score, "--max-length", 32)
    found = json.loads(out)
    assert set(found["scores"]) == {"zero_shot", "emulator_zero_shot", "plug_in"}
    assert found["metric"] == "loss" and found["higher_is_better"] is False
    (exchange / "partial.json").write_text(out)
    (exchange / "other.json").write_text(
        json.dumps({"scores": {"full_tuned": 1.0}, "metric": "loss", "higher_is_better": False})
    )
    more = ("--merge", exchange / "partial.json", "--merge", exchange / "other.json", "--json")
    status, out, err = run("score", model, "--data", text_file, "--max-length", 32, *more)
    assert "recovered" in json.loads(out) and len(json.loads(out)["scores"]) == 4


@pytest.mark.parametrize("name", ["offer", "delta", "offer.record.json", "model"])
def test_inspect_shows_each_kind(run: Run, exchange: Path, name: str) -> None:
    status, out, err = run("inspect", exchange / name)
    assert status == 0 and len(out.splitlines()) > 3, err
    assert ("can end worse than no tuning" in out) == name.endswith(".record.json")
    status, out, err = run("inspect", exchange / name, "--json")
    assert status == 0 and isinstance(json.loads(out), dict)


def test_imported_peft_adapter_is_the_delta(run: Run, exchange: Path) -> None:
    plain = exchange / "peft"
    plain.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(exchange / "delta" / file, plain / file)
    words = ("delta", "import", exchange / "offer", plain, "--out", exchange / "imported")
    status, _, err = run(*words)
    assert status == 0, err
    one = load_file(exchange / "delta" / "adapter_model.safetensors")
    two = load_file(exchange / "imported" / "adapter_model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_two_offers_add_up_in_one_record(run: Run, exchange: Path) -> None:
    words = ("--recipe", "random", "--keep", 1, "--seed", 4, "--json")
    record = ("--record", exchange / "offer.record.json")
    status, out, err = run("offer", exchange / "model", "--out", exchange / "two", *words, *record)
    assert status == 0, err
    found = json.loads(out)
    assert 0.5 < found["verbatim"] <= found["verbatim_so_far"] <= 1
    assert len(json.loads((exchange / "offer.record.json").read_text())["offers"]) == 2


def test_lab_prints_the_table_and_uses_its_cache(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    text_file.write_text(text_file.read_text()[:800])
    words: tuple[object, ...]
    words = ("lab", model_folder("llama"), "--data", text_file, "--eval-data", text_file)
    words += ("--keep", 1, "--delta", "full", "--delta", "bitfit", "--steps", 2, "--seeds", "0,1")
    words += ("--full-lr", "1e-3", "--max-length", 32)
    words += ("--out", tmp_path / "lab", "--json", "--device", "cpu")
    status, out, err = run(*words)
    assert status == 0, err
    found = json.loads(out)
    assert len(found["rows"]) == 4 and len(found["rows"][0]["scores"]) == 6
    assert 0.5 < found["rows"][0]["verbatim"] < 1
    for suffix in ("json", "md", "tex", "csv"):
        assert (tmp_path / "lab" / f"results.{suffix}").stat().st_size > 100
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "lab" / "cells").iterdir()}
    assert run(*words)[0] == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "lab" / "cells").iterdir()}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, offsite.cli; heavy = {'torch', 'transformers', 'peft', 'numpy', 'pydantic'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["uniform", "random", "prune", "int8", "crash"])
def test_presets_by_command(
    name: str, run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    words = ("--recipe", name, "--budget", 0.5, "--data", text_file, "--max-length", 32)
    model = model_folder("llama")
    status, out, err = run("offer", model, "--out", tmp_path / name, *words, "--json")
    assert status == 0, err
    assert json.loads(out)["emulator_zero_shot"] > 0
    assert os.listdir(tmp_path / name)


def test_the_emulator_is_scored_on_some_of_the_owners_data_or_on_all_of_the_given(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model = model_folder("llama")
    words = ("--keep", 1, "--adapter", "ends:1,1", "--max-length", 4)
    for option, out in (("--data", tmp_path / "a"), ("--eval-data", tmp_path / "b")):
        status, text, err = run("offer", model, "--out", out, *words, option, text_file, "--json")
        assert status == 0 and (rows := json.loads(text)["rows_scored"]) > 32, err
        assert (rows <= 64) == (option == "--data")
        assert f"scoring: {rows:,} rows, about " in err


@pytest.mark.parametrize("side", ["offer", "plug"])
def test_what_the_record_does_not_know_is_not_left(
    side: str, run: Run, exchange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offsite.exchange.record import Record

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "record.json")

    monkeypatch.setattr(Record, "write", full)
    words = {
        "offer": ("offer", exchange / "model", "--adapter", "ends:2,2", "--keep", 1),
        "plug": ("plug", exchange / "model", exchange / "delta", "--as-adapter", "--again"),
    }[side]
    record = ("--record", exchange / "offer.record.json")
    status, _, err = run(*words, *record, "--out", exchange / "made")
    assert status == 2 and "the disk is full" in err
    assert not (exchange / "made").exists()


def test_an_adapter_of_the_most_important_blocks(
    run: Run, exchange: Path, text_file: Path, tmp_path: Path
) -> None:
    model, learned = exchange / "model", tmp_path / "learned"
    words = ("--data", text_file, "--max-length", 32, "--learn", learned, "--learn-steps", 1)
    assert run("importance", model, *words)[0] == 0
    more = ("--adapter", "learned:2", "--learned", learned, "--keep", 2, "--json")
    status, out, err = run("offer", model, "--out", tmp_path / "two", *more)
    assert status == 0, err
    assert len(json.loads(out)["adapter"]) == 2


def test_brackets_in_a_name_are_no_markup(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """They ended four commands with an unexpected error after all the work was done."""
    model = model_folder("llama")
    folder = tmp_path / "[/b] :cat:"
    folder.mkdir(parents=True)
    offer, delta, out = (folder / name for name in ("offer", "delta", "tuned"))
    record = folder / "offer.record.json"
    for words in (
        ("offer", model, "--out", offer, "--keep", 2, "--name", "[/x] :cat:"),
        ("check", "offer", offer),
        ("tune", offer, "--data", text_file, "--out", delta, "--steps", 1, "--max-length", 16),
        ("inspect", delta, "--base", offer),
        ("plug", model, delta, "--record", record, "--out", out),
        ("delta", "export", offer, delta, "--out", folder / "plain"),
    ):
        device = () if words[0] in ("check", "inspect", "plug", "delta") else ("--device", "cpu")
        status, told, err = run(*words, *device)
        assert status == 0, err
        assert "[/b] :cat:" in told and "\N{CAT}" not in told, words


@pytest.mark.parametrize("method", ["lora:rank=2", "full"])
def test_a_float64_checkpoint_makes_the_round_trip(
    method: str, run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model = model_folder("llama")
    whole = transformers.AutoModelForCausalLM.from_pretrained(model).double()
    whole.save_pretrained(model)
    words = ("--adapter", "ends:2,2", "--keep", 1)
    status, _, err = run("offer", model, "--out", tmp_path / "offer", *words)
    assert status == 0, err
    sent = load_file(tmp_path / "offer" / "model.safetensors")
    assert {tensor.dtype for tensor in sent.values()} == {torch.float64}
    tune = ("tune", tmp_path / "offer", "--data", text_file, "--out", tmp_path / "delta")
    status, _, err = run(*tune, "--steps", 1, "--max-length", 32, "--delta", method)
    assert status == 0, err
    record = ("--record", tmp_path / "offer.record.json")
    status, _, err = run("plug", model, tmp_path / "delta", *record, "--out", tmp_path / "tuned")
    assert status == 0, err
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    before = load_file(model / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and {int(name.split(".")[2]) for name in changed} == {0, 1, 4, 5}


def test_an_offer_without_a_tokenizer_says_so(run: Run, model_folder: Any, tmp_path: Path) -> None:
    model = model_folder("llama")
    offer = ("offer", model, "--keep", 1, "--adapter", "ends:2,2", "--out")
    assert "no tokenizer" not in run(*offer, tmp_path / "with")[1]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    status, out, err = run(*offer, tmp_path / "without")
    assert status == 0, err
    assert "The model has no tokenizer, so the offer has none" in " ".join(out.split())
