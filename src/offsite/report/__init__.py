"""One self-contained HTML page about runs: no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import check_free, write_file
from offsite.report.page import page
from offsite.report.runs import Run, make_run, read_run
from offsite.report.sections import by_task


def write_report(
    runs: Sequence[str | Path | Run | Any],
    out: str | Path,
    *,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of one or more runs.

    Args:
        runs: each a lab's results (path or the JSON itself), a scores file, an offer or delta
            folder whose contents are listed, or a :class:`Run`.
        out: the ``.html`` file.
        title: heading; by default the model and the task.
        overwrite: replace ``out`` where it exists.

    Returns:
        The path of the page.

    Raises:
        OffsiteError: no run with scores, something that is not a run, or ``out`` exists.
    """
    if not runs:
        raise OffsiteError("There is nothing to report; name a run of the lab.")
    check_free(out, overwrite=overwrite)
    read = [_read(run) for run in runs]
    settings = [setting for run in read for setting in run.settings]
    if not settings:
        raise OffsiteError(
            "None of these inputs holds scores; add a run of the lab or a file of 'offsite score'."
        )
    names = dict.fromkeys(
        f"{model or 'model'} on {task}" if task else model or "Offsite-tuning"
        for model, task, _ in by_task(settings)
    )
    heading = title or (next(iter(names)) if len(names) == 1 else f"{len(names)} experiments")
    write_file(out, page(read, heading))
    return Path(out)


def _read(run: Any) -> Run:
    if isinstance(run, Run):
        return run
    return read_run(run) if isinstance(run, (str, Path)) else make_run(run)
