"""Multiple choice, and classification as text: trained on the right answer, scored by likelihood.

The scores are those of EleutherAI's lm-eval: accuracy of the choice with the highest log-likelihood
after the prompt, and ``accuracy_norm``, where it is divided by the choice's length in characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset

from offsite.errors import OffsiteError
from offsite.tasks.file import TaskFile
from offsite.tasks.likelihood import Question, choice_scores
from offsite.tasks.rows import Row, read_rows
from offsite.tasks.task import Evaluation, mean_of
from offsite.tasks.template import render
from offsite.tasks.text import CausalText, labelled, pack_ids, restarts, window


@dataclass(frozen=True)
class Choices:
    """One question as text: the choices without the separator, and the number of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    where: str


class Asked(Dataset[Any]):
    """Packed rows to train on, and the same examples one by one to score.

    ``processor`` is the tokenizer that made them, for tasks whose answers it must read.
    """

    def __init__(
        self, rows: Sequence[Any], questions: Sequence[Any], processor: Any = None
    ) -> None:
        self.rows, self.questions, self.processor = rows, questions, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(CausalText):
    """A multiple-choice task as its file describes it.

    Attributes:
        file: the task file.
        folder: what the data paths of the file are relative to.
    """

    file: TaskFile
    folder: Path | None = None

    higher_is_better: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The task file's name for itself."""
        return self.file.name

    @property
    def metric(self) -> str:
        """``"accuracy"`` or ``"accuracy_norm"``."""
        return self.file.metric or "accuracy"

    def read(self, source: str | Path) -> list[Choices]:
        """The questions of a data file, as text.

        Raises:
            OffsiteError: missing columns, an unknown label, an empty or doubled choice; file and
                line are named.
        """
        return [read_choices(self.file, row) for row in read_rows(source, self.file.columns)]

    def check(self, source: str | Path, processor: Any = None, config: Any = None) -> int:
        """Read a data file without any model and return the number of its questions.

        Raises:
            OffsiteError: as :meth:`read`; with a tokenizer also a choice over the context length.
        """
        questions = self.read(source)
        if processor is not None:
            encode_choices(questions, self.file, processor, context_length(processor, config))
        return len(questions)

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> Dataset[Any]:
        """Read, encode and pack a data file; see :class:`~offsite.tasks.task.Task`."""
        if processor is None:
            raise OffsiteError("The model has no tokenizer, so questions cannot be read for it.")
        config = getattr(model, "config", None)
        limit = context_length(processor, config)
        questions = encode_choices(self.read(source), self.file, processor, limit)
        right = [(q.prompt, q.choices[q.answer]) for q in questions]
        length = window(self.max_length, config)
        rows = training_rows(right, processor, length)
        return Asked(pack_ids(rows, length, together=restarts(model)), questions)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """Accuracy with its standard error; both accuracies are in ``extra``."""
        questions = asked(data, self.name).questions
        right: dict[str, list[float]] = {"accuracy": [], "accuracy_norm": []}
        for question, scores in zip(
            questions, choice_scores(model, questions, batch_size), strict=True
        ):
            per_length = [s / n for s, n in zip(scores, question.lengths, strict=True)]
            for metric, values in (("accuracy", scores), ("accuracy_norm", per_length)):
                right[metric].append(float(values.index(max(values)) == question.answer))
        means = {metric: mean_of(metric, values) for metric, values in right.items()}
        extra = {metric: mean.value for metric, mean in means.items()}
        extra |= {f"{metric}_stderr": mean.stderr or 0.0 for metric, mean in means.items()}
        return mean_of(self.metric, right[self.metric], **extra)


def context_length(processor: Any, config: Any) -> int:
    """Tokens the model can read at once, as far as it or its tokenizer says; else 2048."""
    stated = getattr(processor, "model_max_length", None) or 0
    return window(stated if 0 < stated < 10**7 else 2048, config)


def training_rows(
    pairs: Sequence[tuple[list[int], list[int]]], processor: Any, length: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of prompts with their answers and an end of text.

    What is over ``length`` is cut from the start of the prompt, then from the end of the answer.
    """
    end = [] if processor.eos_token_id is None else [processor.eos_token_id]
    whole = [(prompt, (answer + end)[: length - 1]) for prompt, answer in pairs]
    return [labelled(prompt[-(length - len(answer)) :], answer) for prompt, answer in whole]


def asked(data: Any, name: str) -> Asked:
    """The data set, if it is one of questions."""
    if not isinstance(data, Asked):
        raise OffsiteError(f"The data was not loaded by the task '{name}', so it cannot be scored.")
    return data


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
    prompt = render(file.prompt, row)
    if not prompt.strip():
        raise OffsiteError(f"{row.where} gives an empty prompt.")
    return Choices(prompt, choices, find_answer(file, choices, row), row.where)


def find_answer(file: TaskFile, choices: Sequence[str], row: Row) -> int:
    """The 0-based number of the right choice: from a number, a label or a choice's text."""
    value = row[file.answer]
    names = file.labels or choices
    if isinstance(value, str) and value in names:
        return list(names).index(value)
    if not file.labels and not isinstance(value, bool):
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, int) and 0 <= number < len(choices):
            return number
    known = f"one of {', '.join(file.labels)}" if file.labels else f"0 to {len(choices) - 1}"
    raise OffsiteError(
        f"{row.where} has an unknown label in its column '{file.answer}'; it must be {known}"
        f"{'' if file.labels else ', or the text of a choice'}."
    )


def encode_choices(
    questions: Sequence[Choices], file: TaskFile, processor: Any, length: int
) -> list[Question]:
    """Token ids of prompts and choices, cut where lm-eval cuts them.

    Raises:
        OffsiteError: a prompt with a choice over ``length`` tokens, or a choice without tokens.
    """
    encoded = []
    for question in questions:
        endings = [file.separator + choice for choice in question.choices]
        prompt, tails = encode_after(question.prompt, endings, processor, length, question.where)
        lengths = tuple(len(choice) for choice in question.choices)
        encoded.append(Question(prompt, tails, question.answer, lengths))
    return encoded


def encode_after(
    prompt: str, endings: Sequence[str], processor: Any, length: int, where: str
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt, and of each text that may follow it."""
    stripped = prompt.rstrip()
    gap = prompt[len(stripped) :]  # spaces at the end belong to what follows
    start = ids_of(stripped, processor)
    tails = [ids_of(stripped + gap + ending, processor)[len(start) :] for ending in endings]
    if not start or not all(tails):
        raise OffsiteError(f"{where} has a prompt or a choice that the tokenizer makes nothing of.")
    longest = len(start) + max(map(len, tails))
    if longest > length:
        raise OffsiteError(
            f"{where} takes {longest} tokens with its longest answer, but the model reads "
            f"{length} at once; shorten or remove it."
        )
    return start, tails


def ids_of(text: str, processor: Any) -> list[int]:
    """Token ids with the special tokens that the tokenizer puts around a text."""
    return list(processor(text, verbose=False)["input_ids"])
