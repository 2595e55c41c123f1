"""Whatever goes wrong in a command is one sentence, and the trace is there for who asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from offsite.training.processes import main_process
from tests.support import Run


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def read(text: str) -> int:
    return int(text)


class PanicException(BaseException):
    """As the tokenizers library raises it: not an Exception."""


@pytest.mark.parametrize("error", [RuntimeError("shape\n[2, 3]"), PanicException("shape [2, 3]")])
def test_an_unforeseen_error_names_files_and_cause(
    error: BaseException, run: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.cli.app", lambda: raising(error)())
    status, out, err = run("inspect", text_file)
    assert status == 2 and not out and len(err.strip().splitlines()) == 1
    assert f"with '{text_file}': {type(error).__name__} (shape [2, 3])" in err
    assert "in cli/test_failure.py, line " in err and "--debug" in err


@pytest.mark.parametrize("take", [lambda: torch.empty(2**50), raising(MemoryError())])
def test_too_little_memory_is_called_that(
    take: Callable[[], Any], run: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.cli.app", take)
    status, out, err = run("inspect", text_file)
    assert status == 2 and not out and len(err.strip().splitlines()) == 1
    assert f"not enough memory while working with '{text_file}'. Give the process more" in err


def test_the_trace_is_shown_where_it_is_asked_for(
    run: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.cli.app", lambda: raising(KeyError("x"))())
    for words in (("--debug", "inspect", text_file), ("inspect", text_file, "--debug")):
        status, _, err = run(*words)
        assert status == 2 and "Traceback" in err and err.count("offsite: Stopped") == 1


def test_an_error_from_reading_data_does_not_quote_it(
    run: Run, model_folder: Callable[..., Path], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.tasks.text.causal.read_documents", lambda _: read("secret"))
    status, _, err = run("score", model_folder("llama"), "--data", text_file)
    assert status == 2 and "ValueError" in err and "secret" not in err and "Traceback" not in err


def test_only_a_group_of_processes_has_quiet_ones(
    run: Run, text_file: Path, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main_process()  # a scheduler set it
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main_process()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not main_process()  # torchrun started it
    assert run("deltas")[1] == ""
    monkeypatch.setenv("RANK", "0")
    assert main_process() and run("deltas")[1] != ""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "1")
    score = ("score", model_folder("llama"), "--data", text_file, "--max-length", 32, "--json")
    status, out, err = run(*score)
    assert status == 0 and json.loads(out)["scores"]["zero_shot"] > 0, err


def test_outputs_that_are_not_numbers_have_no_score(
    run: Run, model_folder: Callable[..., Path], text_file: Path
) -> None:
    model = model_folder("llama")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][:] = float("inf")  # infinite times zero
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    status, out, err = run("score", model, "--data", text_file, "--max-length", 32)
    assert status == 2 and "are not finite numbers, so it has no score" in err and not out
