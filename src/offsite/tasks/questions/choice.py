"""Multiple choice, and classification as text: trained on the right answer, scored by likelihood.

The scores are those of EleutherAI's lm-eval: accuracy of the choice with the highest log-likelihood
after the prompt, and ``accuracy_norm``, where it is divided by the choice's length in characters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from offsite.errors import OffsiteError
from offsite.tasks.questions.file import TaskFile
from offsite.tasks.questions.likelihood import Question, check_told_apart, choice_scores
from offsite.tasks.questions.task import Questions, encode_question, prompt_of, question_rows
from offsite.tasks.questions.template import render
from offsite.tasks.rows import Row, read_rows
from offsite.tasks.task import Evaluation, HarnessForm, mean_of

OTHER_LABELS = ", or the text of a choice; the task file may name others with 'labels'"
NUMBER = re.compile(r"[0-9]{1,9}(\.0+)?")


@dataclass(frozen=True)
class Choices:
    """One question as text: the choices without the separator, and the number of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    where: str


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Questions):
    """A multiple-choice task as its file describes it."""

    @property
    def metric(self) -> str:
        """``"accuracy"`` or ``"accuracy_norm"``."""
        return self.file.metric or "accuracy"

    def read(self, source: str | Path, *, train: bool = False) -> list[Choices]:
        """The questions of a data file, as text.

        Raises:
            OffsiteError: missing columns, an unknown label, an empty choice, or a right choice that
                stands there twice (public sets do double wrong ones); file and line are named.
        """
        return [read_choices(self.file, row) for row in read_rows(source, self.file.columns)]

    def encode(
        self, question: Choices, processor: Any, length: int
    ) -> tuple[Question, list[int], list[int]]:
        """Token ids of prompt and choices, cut where lm-eval cuts them.

        Raises:
            OffsiteError: a prompt with a choice over ``length`` tokens, a choice without tokens, or
                one with those of the right choice.
        """
        endings = [self.file.separator + choice for choice in question.choices]
        prompt, tails = encode_question(question.prompt, endings, processor, length, question.where)
        if tails.count(tails[question.answer]) > 1:
            raise OffsiteError(
                f"{question.where} has a right choice and a wrong one that the tokenizer turns "
                "into the same tokens, so they cannot be told apart; change one or remove the line."
            )
        lengths = tuple(len(choice) for choice in question.choices)
        encoded = Question(prompt, tails, question.answer, lengths)
        return encoded, prompt, tails[question.answer]

    def harness(self, documents: Sequence[Choices]) -> HarnessForm:
        """Questions for the harness; see :class:`~offsite.tasks.task.Task`."""
        rows = [
            {"text": q.prompt, "choices": list(q.choices), "target": q.answer} for q in documents
        ]
        options = {"doc_to_choice": "choices", "target_delimiter": self.file.separator}
        return HarnessForm(rows, ("acc", "acc_norm"), "multiple_choice", options)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """Accuracy with its standard error; both accuracies are in ``extra``.

        It is not a number (NaN) where a choice's log-likelihood is not.

        Raises:
            OffsiteError: all choices of every question tie.
        """
        questions = question_rows(data, self.name).questions
        right: dict[str, list[float]] = {"accuracy": [], "accuracy_norm": []}
        found = choice_scores(model, questions, batch_size)
        check_told_apart(found)
        for question, scores in zip(questions, found, strict=True):
            per_length = [s / n for s, n in zip(scores, question.lengths, strict=True)]
            for metric, values in (("accuracy", scores), ("accuracy_norm", per_length)):
                best = float(values.index(max(values)) == question.answer)
                right[metric].append(math.nan if any(map(math.isnan, values)) else best)
        means = {metric: mean_of(metric, values) for metric, values in right.items()}
        extra = {metric: mean.value for metric, mean in means.items()}
        extra |= {f"{metric}_stderr": mean.stderr or 0.0 for metric, mean in means.items()}
        return mean_of(self.metric, right[self.metric], **extra)


def read_choices(file: TaskFile, row: Row) -> Choices:
    """One question from one row."""
    if isinstance(file.choices, tuple):
        choices = tuple(render(template, row) for template in file.choices)
    else:
        column = file.choices or ""
        listed = row[column]
        if not isinstance(listed, list) or not all(isinstance(c, str) for c in listed):
            raise OffsiteError(f"{row.where} needs a list of texts in its column '{column}'.")
        choices = tuple(listed)
    if len(choices) < 2 or not all(choices):
        raise OffsiteError(f"{row.where} needs at least two choices, none of them empty.")
    answer = find_answer(file, choices, row)
    if choices.count(choices[answer]) > 1:
        raise OffsiteError(f"{row.where} lists its right choice twice; remove one of the two.")
    return Choices(prompt_of(file, row), choices, answer, row.where)


def find_answer(file: TaskFile, choices: Sequence[str], row: Row) -> int:
    """The 0-based number of the right choice: from a number, a label or a choice's text.

    JSON's ``true`` and ``1`` stand for the labels ``"true"`` and ``"1"``; ``1.0`` is the number 1.

    Raises:
        OffsiteError: none of these, or a text that is one choice and the number of another.
    """
    value = row[file.answer]
    names = list(file.labels[: len(choices)] or choices)
    number = None if isinstance(value, bool) else whole_number(value)
    if file.labels:
        spelt = json.dumps(value) if isinstance(value, bool) else value
        texts = [spelt] if isinstance(spelt, str) else [str(value), str(number)]
        found = next((names.index(text) for text in texts if text in names), None)
    else:
        found = names.index(value) if isinstance(value, str) and value in names else None
        numbered = number if number is not None and 0 <= number < len(choices) else None
        if found is not None and numbered is not None and found != numbered:
            raise OffsiteError(
                f"{row.where} has an ambiguous label in its column '{file.answer}': it is the text "
                "of one choice and the number of another; name the choices with 'labels' in the "
                "task file."
            )
        found = numbered if found is None else found
    if found is not None:
        return found
    known = f"one of {', '.join(names)}" if file.labels else f"0 to {len(choices) - 1}"
    raise OffsiteError(
        f"{row.where} has an unknown label in its column '{file.answer}'; it must be {known}"
        f"{'' if file.labels else OTHER_LABELS}."
    )


def whole_number(value: Any) -> int | None:
    """A whole number, also one written as text or as ``1.0``; else None."""
    if isinstance(value, str) and len(value) < 12 and NUMBER.fullmatch(value):
        return int(float(value))
    if isinstance(value, (int, float)) and value == int(value):
        return int(value)
    return None
