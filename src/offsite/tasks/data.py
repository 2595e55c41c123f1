"""The data of one task, from a file to rows; each stage runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.tasks.source import Source, data_identity
from offsite.tasks.task import Task


@dataclass
class TaskData:
    """A data set, read when it is first asked for.

    Checking it early is the first part of loading it: what :meth:`check` read is not read again.

    Attributes:
        task: the kind of data.
        source: where it lies.
        train: whether it is for tuning.
    """

    task: Task
    source: Source
    train: bool = False
    _documents: Any = field(default=None, repr=False)
    _prepared: tuple[Any, Any] | None = field(default=None, repr=False)  # with its processor

    def check(self) -> None:
        """Read the file or folder, before there is any model.

        Raises:
            OffsiteError: missing or malformed data; file and line are named.
        """
        if self._documents is None:
            self.source.check()
            self._documents = self.task.read(str(self.source), train=self.train)

    def documents(self) -> Any:
        """What the task read from the file or folder."""
        self.check()
        return self._documents

    def prepare(self, processor: Any, config: Any) -> Any:
        """Make examples for a processor, before any weights are read.

        Raises:
            OffsiteError: an example that the model cannot read; file and line are named.
        """
        if self._prepared is None or self._prepared[0] is not processor:
            self._prepared = processor, self.task.prepare(self.documents(), processor, config)
        return self._prepared[1]

    def rows(self, processor: Any, model: Any) -> Any:
        """Rows for a model."""
        prepared = self.prepare(processor, getattr(model, "config", None))
        return self.task.rows(prepared, model, train=self.train)

    def identity(self) -> str:
        """The identity of the data, which does not depend on its path."""
        return self.source.identity()


def rows_of(task: Task, data: Any, processor: Any, model: Any, *, train: bool = False) -> Any:
    """Rows for a model, from data in any form that the public functions accept.

    Args:
        data: a path, a :class:`TaskData`, rows the task made, or None.
    """
    if isinstance(data, (str, Path)):
        data = TaskData(task, Source.of(data), train)
    if not isinstance(data, TaskData):
        return data
    if data.task != task:  # what was read serves another form of the same task too
        data = replace(data, task=task, _prepared=None)
    return data.rows(processor, model)


def identity_of(data: Any) -> str | None:
    """What tells data (as :func:`rows_of` takes it) from other data."""
    return data.identity() if isinstance(data, TaskData) else data_identity(data)


def find_source(task: Task, given: str | None, split: str) -> str | None:
    """The path a user gave, else what the task file names for ``"train"`` or ``"test"``."""
    if given is not None:
        return given
    found = task.default_source(split)
    return None if found is None else str(found)


def need_source(task: Task, given: str | None, split: str, option: str = "--data") -> str:
    """Like :func:`find_source`, where there must be one.

    Raises:
        OffsiteError: neither was given.
    """
    found = find_source(task, given, split)
    if found is None:
        raise OffsiteError(
            f"There is no data for the task '{task.name}'; give it with {option}, or name it as "
            f"'{split}' in a task file."
        )
    return found


def read_data(task: Task, source: str | None, *, train: bool = False) -> TaskData | None:
    """A data set that is read at once, before any model loads; None without one.

    Raises:
        OffsiteError: missing or malformed data; file and line are named.
    """
    if source is None:
        return None
    data = TaskData(task, Source.of(source), train)
    data.check()
    return data


def prepare_all(data: Sequence[TaskData | None], processor: Any, config: Any) -> None:
    """Prepare data sets for one model, before its weights are read; None is passed over.

    Raises:
        OffsiteError: an example that the model cannot read; file and line are named.
    """
    for one in data:
        if one is not None:
            one.prepare(processor, config)
