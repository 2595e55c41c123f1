"""The part that tasks of questions share: checking, loading and training on answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset

from offsite.errors import OffsiteError
from offsite.tasks.questions.file import TaskFile
from offsite.tasks.questions.template import render
from offsite.tasks.rows import Row
from offsite.tasks.text.causal import CausalText, Prepared, check_processor
from offsite.tasks.text.packing import example, pack, restarts, window
from offsite.tasks.text.tokens import Convention, encode_after


class QuestionRows(Dataset[Any]):
    """Packed rows to train on, and the same examples one by one to score.

    ``processor`` is the tokenizer that made them, for tasks whose answers it must read.
    """

    def __init__(self, rows: Sequence[Any], questions: Sequence[Any], processor: Any) -> None:
        self.rows, self.questions, self.processor = rows, questions, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@dataclass(frozen=True, kw_only=True)
class Questions(CausalText, ABC):
    """Questions as their task file describes them.

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

    def identity(self) -> dict[str, Any]:
        """Name, length and what the task file says, but for where its data lies."""
        said = self.file.model_dump(mode="json", exclude={"train", "test", "source"})
        return {**super().identity(), "file": said}

    def default_source(self, split: str) -> Path | None:
        """The data path that the task file names for ``"train"`` or ``"test"``."""
        found = {"train": self.file.train, "test": self.file.test}[split]
        return None if found is None else (self.folder or Path()) / found

    @abstractmethod
    def read(self, source: str | Path, *, train: bool = False) -> list[Any]:
        """The questions of a data file, as text.

        Raises:
            OffsiteError: a row that is not as described; file and line are named.
        """

    @abstractmethod
    def encode(
        self, question: Any, processor: Any, length: int
    ) -> tuple[Any, list[int], list[int]]:
        """What is scored of a question, and token ids of its prompt and of its right answer.

        The prompt begins as the tokenizer begins a text; neither has an end token.

        Raises:
            OffsiteError: a prompt with an answer over ``length`` tokens, or one without tokens.
        """

    def prepare(self, documents: Sequence[Any], processor: Any, config: Any) -> Prepared:
        """Token ids of questions; see :class:`~offsite.tasks.task.Task`."""
        check_processor(processor)
        around, length = Convention.of(processor), window(self.max_length, config)
        limit = context_length(processor, config)
        encoded = [self.encode(question, processor, limit) for question in documents]
        examples = [example(prompt, answer, around, length) for _, prompt, answer in encoded]
        questions = [question for question, _, _ in encoded]
        return self.prepared(examples, processor, config, questions=questions)

    def rows(self, prepared: Prepared, model: Any, *, train: bool = False) -> Dataset[Any]:
        """Rows to learn, and the questions to score; see :class:`~offsite.tasks.task.Task`."""
        rows = pack(prepared.examples, prepared.length, together=self.packed and restarts(model))
        return QuestionRows(rows, prepared.questions, prepared.processor)


def context_length(processor: Any, config: Any) -> int:
    """Tokens the model can read at once, as far as it or its tokenizer says; else 2048."""
    stated = getattr(processor, "model_max_length", None) or 0
    return window(stated if 0 < stated < 10**7 else 2048, config)


def question_rows(data: Any, name: str) -> QuestionRows:
    """The data set, if it is one of questions."""
    if not isinstance(data, QuestionRows):
        raise OffsiteError(
            f"The data was not loaded by the task '{name}', so it cannot be scored; load it with "
            "that task."
        )
    return data


def prompt_of(file: TaskFile, row: Row) -> str:
    """The prompt of one row; it may not be empty."""
    prompt = render(file.prompt, row)
    if not prompt.strip():
        raise OffsiteError(
            f"{row.where} gives an empty prompt; fill in its columns or remove the line."
        )
    return prompt


def encode_question(
    prompt: str, endings: Sequence[str], processor: Any, length: int, where: str
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt as the tokenizer begins a text, and of each text that may follow it.

    Raises:
        OffsiteError: a prompt or a choice without tokens, or over ``length`` tokens together.
    """
    start, tails = encode_after(processor, prompt, endings, where)
    start = Convention.of(processor).begun(start)
    if not start:
        raise OffsiteError(
            f"{where} has a prompt without tokens: the tokenizer drops all of it; change it."
        )
    longest = len(start) + max(map(len, tails))
    if longest > length:
        raise OffsiteError(
            f"{where} takes {longest} tokens with its longest answer, but the model reads "
            f"{length} at once; shorten or remove it."
        )
    return start, tails
