"""What tasks of questions from a task file share: checking, loading and training on answers."""

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
from offsite.tasks.text.causal import CausalText, labelled, pack_ids, restarts, window


class Asked(Dataset[Any]):
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

    @abstractmethod
    def read(self, source: str | Path) -> list[Any]:
        """The questions of a data file, as text.

        Raises:
            OffsiteError: a row that is not as described; file and line are named.
        """

    @abstractmethod
    def encode(
        self, question: Any, processor: Any, length: int
    ) -> tuple[Any, list[int], list[int]]:
        """What is scored of a question, and token ids of its prompt and of its right answer.

        Raises:
            OffsiteError: a prompt with an answer over ``length`` tokens, or one without tokens.
        """

    def check(self, source: str | Path, processor: Any = None, config: Any = None) -> int:
        """Read a data file without any model and return the number of its questions.

        Raises:
            OffsiteError: as :meth:`read`; with a tokenizer also as :meth:`encode`.
        """
        questions = self.read(source)
        if processor is not None:
            length = context_length(processor, config)
            for question in questions:
                self.encode(question, processor, length)
        return len(questions)

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> Dataset[Any]:
        """Read, encode and pack a data file; see :class:`~offsite.tasks.task.Task`."""
        if processor is None:
            raise OffsiteError("The model has no tokenizer, so questions cannot be read for it.")
        config = getattr(model, "config", None)
        limit, length = context_length(processor, config), window(self.max_length, config)
        encoded = [self.encode(question, processor, limit) for question in self.read(source)]
        pairs = [(prompt, answer) for _, prompt, answer in encoded]
        together = self.packed and restarts(model)
        rows = pack_ids(training_rows(pairs, processor, length), length, together=together)
        return Asked(rows, [question for question, _, _ in encoded], processor)


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


def prompt_of(file: TaskFile, row: Row) -> str:
    """The prompt of one row; it may not be empty."""
    prompt = render(file.prompt, row)
    if not prompt.strip():
        raise OffsiteError(f"{row.where} gives an empty prompt.")
    return prompt


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
