"""The folder beside a result that holds what a run needs to resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from offsite.errors import OffsiteError
from offsite.files import exclusive, read_json, write_file, writing
from offsite.training.identity import Identity
from offsite.training.processes import main_process

RUN = "run.json"  # what the run was asked to do
LOGS = "runs"  # where the Trainer puts them


class Interrupted(OffsiteError):
    """The user stopped a run that can be resumed."""


def work_folder(out: Path, resume: bool) -> Path:
    """The folder for resumable state of what will be written to ``out``; it may not exist yet.

    Raises:
        OffsiteError: it holds the state of an interrupted run and ``resume`` is not asked for.
    """
    work = out.with_name(f"{out.name}.work")
    if not resume and has_state(work):
        raise OffsiteError(
            f"'{work}' holds an interrupted run; add --resume to continue it, or remove the "
            "folder to start again."
        )
    return work


def has_state(work: Path) -> bool:
    """Whether a folder holds more than the note of what was asked."""
    return work.is_dir() and any(
        path.name != RUN and path.suffix != ".partial" for path in work.iterdir()
    )


def finish_work(work: Path | None) -> None:
    """Remove the folder once what it was for is written; logs for trackers stay, in ``*.runs``."""
    if work is None:
        return
    if (work / LOGS).is_dir():
        shutil.copytree(work / LOGS, work.with_suffix(f".{LOGS}"), dirs_exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def same_run(work: Path | None, run: Callable[[], Identity], resume: bool) -> Iterator[None]:
    """Note what a run was asked to do; when resuming, hold it to what was noted.

    Args:
        work: the folder of the run; without one ``run`` is not asked, which may read all data.
        run: gives what the run was asked to do.

    The folder is the present user's alone (mode 0700), and one process at a time works in it. A run
    that fails before there is anything to resume leaves no note either.

    Raises:
        OffsiteError: no run was noted, or another than this; another process is at work there.
        Interrupted: Ctrl-C when there was something to resume.
    """
    if work is None:
        yield
        return
    if resume and not (work / RUN).is_file():
        raise OffsiteError(f"There is nothing to resume in '{work}'; run without --resume.")
    asked = run()
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        work.chmod(0o700)
    with exclusive(work) if main_process() else nullcontext():  # torchrun's processes share it
        yield from _noted(work, asked, resume)


def _noted(work: Path, asked: Identity, resume: bool) -> Iterator[None]:
    if resume:
        before = read_json(work / RUN)
        noted = Identity(before if isinstance(before, dict) else {})
        if changed := asked.difference(noted):
            raise OffsiteError(
                f"The run in '{work}' was started with another {' and another '.join(changed)}; "
                "resume it with the same, or remove the folder to start afresh."
            )
    write_file(work / RUN, json.dumps(asked.parts) + "\n")
    try:
        yield
    except BaseException as error:
        if not has_state(work):
            (work / RUN).unlink(missing_ok=True)
            with suppress(OSError):  # another process of torchrun has been here
                work.rmdir()
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "Interrupted; run the same command with --resume to continue."
            ) from error
        raise
