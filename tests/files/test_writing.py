"""Files and folders appear whole, with the modes of the umask; what the dead left is swept."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from offsite.errors import OffsiteError
from offsite.files import exclusive, new_folder, write_file
from offsite.files.swap import swap
from offsite.files.writing import temporary_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask; it is put back afterwards."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_the_umask_is_honoured(
    mask: int, folder: int, file: int, umask: Callable[[int], int], tmp_path: Path
) -> None:
    umask(mask)
    with new_folder(tmp_path / "out") as partial:
        assert mode(partial) == 0o700, "nobody reads what is half written"
        (partial / "weights").write_bytes(b"x")
        (partial / "weights").chmod(0o600)  # as safetensors does
    write_file(tmp_path / "note", "x")
    write_file(tmp_path / "secret", "x", private=True)
    assert (mode(tmp_path / "out"), mode(tmp_path / "out" / "weights")) == (folder, file)
    assert (mode(tmp_path / "note"), mode(tmp_path / "secret")) == (file, 0o600)


def killed(work: Callable[[], None]) -> None:
    """Run something in a process that is then killed."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_the_dead_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    def die() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    killed(die)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    mine = tmp_path / ".out.settings"
    mine.mkdir()
    alive = temporary_path(tmp_path / "out")
    alive.mkdir()
    with new_folder(tmp_path / "out"):
        assert not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["out", mine.name, alive.name])


def test_two_folders_change_names_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fallback in (False, True):
        if fallback:
            monkeypatch.setattr("offsite.files.swap._exchanged", lambda *_: False)
        for name in ("new", "old"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "name").write_text(name)
        swap(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old" / "name").read_text() == "new"
        assert (tmp_path / "new" / "name").read_text() == "old"


def test_a_kill_between_two_renames_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.files.swap._exchanged", lambda *_: False)
    rename = os.rename

    def die(first: Path, second: Path) -> None:
        rename(first, second)
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        monkeypatch.setattr(os, "rename", die)
        with new_folder(tmp_path / "out", overwrite=True):
            pass

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("x")
    killed(work)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError("stop")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "kept"]


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(OffsiteError, match="Another process")
    with exclusive(tmp_path), refused, exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
