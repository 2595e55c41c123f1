"""The settings of a score; only scores with equal settings are merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import shown
from offsite.tasks.data import TaskData
from offsite.tasks.task import Task

SETTINGS = ("task", "eval_data", "max_length", "count")
SHAREABLE = ("metric", "value", "higher_is_better", "stderr", "extra")


def settings_of(task: Task) -> dict[str, Any]:
    """What the other party may know of how a score was obtained: the task and its length."""
    found = {"task": task.name, "max_length": task.max_length}
    return {key: value for key, value in found.items() if value is not None}


def private_settings(data: TaskData, count: int | None = None) -> dict[str, Any]:
    """What describes the evaluation data itself: a hash of it, and what the score is a mean over.

    A hash lets anybody who guesses the data see that the guess was right, and a count says how much
    there is; so neither goes into a file for the other party unless its owner asks for it.

    Args:
        count: how many tokens, questions or images the score is the mean of.
    """
    return {"eval_data": data.identity(), **({} if count is None else {"count": count})}


def shareable(details: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Details of scores without the number of items and what each of them scored."""
    return {
        name: {key: part[key] for key in SHAREABLE if key in part} for name, part in details.items()
    }


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any], file: str | Path) -> None:
    """Refuse to put scores together that were not obtained on the same.

    Raises:
        OffsiteError: both say a task, a length, data or a count, and not the same.
    """
    for key in SETTINGS:
        if mine.get(key) is not None and theirs.get(key) is not None and mine[key] != theirs[key]:
            values = "" if key == "eval_data" else f" ({shown(theirs[key])}, here {mine[key]})"
            raise OffsiteError(
                f"'{file}' was scored with another '{key}'{values}, so it cannot be merged; score "
                "both with the same --task, --data and --max-length."
            )
