"""A damaged or half-written checkpoint is passed over; a full disk costs nothing that was saved."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.drop import Drop
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.errors import OffsiteError
from offsite.files import exclusive
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from offsite.training.checkpoints import SEAL, damage, newest_checkpoint
from offsite.training.options import TrainOptions
from offsite.training.resume import Interrupted
from offsite.tuner.tuning import tune
from tests.support.models import language_model
from tests.support.signals import Interrupt

TASK = CausalText(max_length=32)
OPTIONS = TrainOptions(steps=8, batch_size=2, lr=5e-2, save_every=2)
Tune = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def run(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Tune:
    """Tunes one offer on one text and returns the delta's tensors."""
    text = tmp_path_factory.mktemp("text") / "train.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log. " * 40)
    offer, _ = make_offer(language_model("llama"), recipe=[Drop(keep=1)], processor=tokenizer)

    def tuned(task: Any = TASK, **more: Any) -> dict[str, torch.Tensor]:
        return tune(offer, text, LoRA(rank=2), options=OPTIONS, task=task, **more).values()

    return tuned


@pytest.fixture(scope="module")
def straight(run: Tune) -> dict[str, torch.Tensor]:
    """The tensors of a run that nobody interrupted."""
    return run()


@pytest.fixture(scope="module")
def ended(run: Tune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run that SIGTERM ended after step 7; step 6 was saved before."""
    work = tmp_path_factory.mktemp("ended") / "work"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="step 7 of 8"):
        Interrupt(patch)(CausalText, "loss", call=7, number=signal.SIGTERM)
        run(work=work)
    return work


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "cut": ("optimizer.pt", truncate),
    "missing": ("optimizer.pt", Path.unlink),
    "bit": ("model.safetensors", flip),
    "killed": (SEAL, Path.unlink),
    "seal": (SEAL, truncate),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_checkpoint_before_is_used(
    kind: str, run: Tune, straight: Any, ended: Path, tmp_path: Path, caplog: Any
) -> None:
    work = Path(shutil.copytree(ended, tmp_path / "work"))
    name, harm = DAMAGE[kind]
    file = work / "checkpoint-7" / name
    if not file.exists():
        file = next(p for p in (work / "checkpoint-7").iterdir() if p.suffix == file.suffix)
    harm(file)
    assert damage(work / "checkpoint-7")
    resumed = run(work=work, resume=True)
    assert "Passed over the checkpoint" in caplog.text and "checkpoint-7" in caplog.text
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())


def test_no_dead_end_without_a_whole_checkpoint(
    run: Tune, straight: Any, ended: Path, tmp_path: Path, caplog: Any
) -> None:
    work = Path(shutil.copytree(ended, tmp_path / "work"))
    for path in work.glob("checkpoint-*"):
        (path / SEAL).unlink()
    resumed = run(work=work, resume=True)
    assert "starts from the beginning" in caplog.text
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    "words",
    [
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
        "basic_ios::clear: iostream error",
    ],
)
def test_a_full_disk_is_one_sentence(
    words: str, run: Tune, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def full(*args: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError(words)
        save(*args, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OffsiteError, match=r"the disk is full; .* --resume"):
        run(work=tmp_path / "work")
    monkeypatch.setattr(torch, "save", save)
    assert newest_checkpoint(tmp_path / "work") is not None
    resumed = run(work=tmp_path / "work", resume=True)
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())


@pytest.mark.parametrize("rank", ["0", "1"])  # a scheduler's; these processes form no group
def test_a_work_folder_is_private_and_for_one_process(
    rank: str, run: Tune, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert stat.S_IMODE(ended.stat().st_mode) == 0o700
    work = tmp_path / "work"
    work.mkdir()
    with exclusive(work), pytest.raises(OffsiteError, match="Another process is at work"):
        run(work=work)
