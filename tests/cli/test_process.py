"""Signals, closed streams, narrow encodings and lost folders: one sentence, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Run
from tests.support.signals import handled

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal that is handled as at the start of a process, also where nohup runs the tests."""
    with handled(request.param):
        yield request.param


def test_a_signal_ends_a_command_as_ctrl_c_does(
    number: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)

    def half_written(*_: object) -> None:
        from offsite.files import new_folder

        with new_folder(tmp_path / "out"):
            os.kill(os.getpid(), number)

    monkeypatch.setattr("offsite.cli.inspecting.emit", half_written)
    status, out, err = run("tasks")
    assert (status, out, err) == (128 + number, "", "Interrupted.\n")
    assert not any(tmp_path.iterdir()) and signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "offsite.cli.inspecting.emit", lambda *_: os.kill(os.getpid(), signal.SIGHUP)
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        assert run("tasks")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def started(shell: str, folder: Path, *words: object, **environment: str) -> tuple[int, str, str]:
    """Run a command in a process of its own, below a line of shell that prepares it."""
    line = [sys.executable, "-m", "offsite", *map(str, words)]
    ended = subprocess.run(
        ["/bin/sh", "-c", shell, *line], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES), **environment},
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def test_a_closed_stream_is_read_and_written_as_nothing(tmp_path: Path) -> None:
    assert started('"$0" "$@" <&- >&- 2>&-', tmp_path, "tasks") == (0, "", "")


def test_a_removed_folder_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    status, out, err = started('rmdir ../gone; "$0" "$@"', gone, "tasks")
    assert status == 2 and not out
    assert err.splitlines()[-1].startswith("offsite: The current folder was removed"), err


def test_a_full_standard_output_is_named(tmp_path: Path) -> None:
    status, _, err = started('"$0" "$@" > /dev/full', tmp_path, "deltas")
    assert status == 2 and "Cannot write to standard output: No space left on device." in err


def test_a_umask_that_denies_the_user_is_named(tmp_path: Path) -> None:
    status, _, err = started('umask 0777; "$0" "$@"', tmp_path, "deltas")
    assert status == 2 and "The umask 0777 denies you the files that you create" in err


def test_what_an_output_cannot_encode_is_an_escape(tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    code = 'exec "$0" -c "from offsite.cli.process import prepare; prepare(); print(chr(252))"'
    assert started(code, tmp_path, **ascii_only) == (0, "\\xfc\n", "")


def test_an_output_inside_an_offer_is_refused_before_work(
    run: Run, model_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    offer = tmp_path / "offer"
    made = ("offer", model_folder("llama"), "--out", offer, "--adapter", "ends:2,1", "--keep", 1)
    assert run(*made)[0] == 0
    before = sorted(offer.iterdir())
    words = ("tune", offer, "--data", text_file, "--delta", "lora:rank=2", "--steps", 1)
    status, _, err = run(*words, "--max-length", 16, "--out", offer / "delta")
    assert status == 2 and "lies inside an offer or a delta" in err
    assert sorted(offer.iterdir()) == before and run("inspect", offer)[0] == 0


def test_a_home_that_is_a_file_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.write_text("")
    monkeypatch.setenv("OFFSITE_HOME", str(home))
    status, _, err = run("keygen")
    assert status == 2 and f"Cannot write '{home}': " in err and home.read_text() == ""
