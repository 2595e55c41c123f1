"""Fixtures that every test may use: a tokenizer, a model folder, a text file, a command line."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # figures here are of the CPU, wherever the tests run

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from offsite.exchange.rollback import NOTES
from offsite.signing.keys import key_folder
from tests.support import Run
from tests.support.models import TEXT, VOCAB, language_model
from tests.support.signals import Interrupt, handled

torch.accelerator.current_accelerator = lambda *_, **__: None

SHARED = Path(__file__).parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's own keys and peers out of the tests, and the tests' secret out of theirs."""
    folder = tempfile.mkdtemp(prefix="offsite-keys-")
    os.environ["OFFSITE_HOME"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_finish() -> None:
    """Leave the imported modules out of every garbage collection to come, which is then short."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def unknown_records() -> None:
    """Forget what other tests plugged: fixtures of a session are copied and plugged by many."""
    shutil.rmtree(key_folder() / NOTES, ignore_errors=True)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of 300 entries with one end-of-text token, id 0."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer: Any) -> Callable[..., Path]:
    """Saves a tiny model with its tokenizer as a folder and returns the path."""

    def save(family: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / f"model-{family}"
        language_model(family, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text file to tune on."""
    path = tmp_path / "train.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ with real models and data is not here")
    return SHARED


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupt]:
    """Presses Ctrl-C in the middle of a run."""
    with handled(signal.SIGINT):
        yield Interrupt(monkeypatch)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; returns exit status, standard output and standard error."""
    from offsite.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["offsite", *map(str, words)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capfd.readouterr()

    return call


@pytest.fixture(scope="session")
def processor() -> Any:
    """An image processor of tiny pictures."""
    from tests.support.pictures import image_processor

    return image_processor()
