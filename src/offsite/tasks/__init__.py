"""The tasks, which are kinds of private data, found by name.

Each task's module is imported when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from offsite.errors import OffsiteError

if TYPE_CHECKING:
    from offsite.tasks.task import Task


def task_names() -> tuple[str, ...]:
    """Every name :func:`load_task` knows; a path of a task file will do as well."""
    from offsite.tasks.questions.file import builtin_names

    return ("text", "chat", "image-classification", *builtin_names())


def load_task(name: str | Path, max_length: int = 512, *, skip_bad: bool = False) -> Task:
    """A task by name, or from a task file.

    Args:
        name: one of :func:`task_names`, or the path of a ``.toml`` or ``.json`` task file.
            ``image-classification:augment=crop+colour`` chooses what is done to pictures while
            tuning (``flip``, ``crop``, ``colour``; ``augment=none`` for nothing).
        max_length: tokens of a row or a question, where the task reads text.
        skip_bad: leave unreadable pictures out instead of refusing them.

    Raises:
        OffsiteError: no such task, or a file that is not as described; file and line are named.
    """
    if max_length < 2:
        raise OffsiteError(
            f"A length of {max_length} tokens leaves nothing to predict; use 2 or more."
        )
    kind, _, choice = str(name).partition(":")
    if skip_bad and kind != "image-classification":
        raise OffsiteError(
            f"The task '{name}' reads no pictures; skip_bad is for image-classification alone."
        )
    if str(name) == "text":
        from offsite.tasks.text.causal import CausalText

        return CausalText(max_length)
    if str(name) == "chat":
        from offsite.tasks.chat.conversations import Chat

        return Chat(max_length)
    if kind == "image-classification":
        from offsite.tasks.image.augment import kinds_of
        from offsite.tasks.image.classification import ImageClassification

        return ImageClassification(kinds_of(choice), skip_bad)
    from offsite.tasks.questions.choice import MultipleChoice
    from offsite.tasks.questions.file import read_task_file
    from offsite.tasks.questions.open_question import OpenQuestions

    file, folder = read_task_file(name)
    questions = MultipleChoice if file.kind == "multiple-choice" else OpenQuestions
    return questions(max_length, file=file, folder=folder)
