"""Open questions: trained on the first accepted answer, scored by exact match.

The answer is generated greedily, up to the end of its line.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from offsite.errors import OffsiteError
from offsite.model.replay import forward
from offsite.tasks.questions.file import TaskFile
from offsite.tasks.questions.likelihood import continues, same_length
from offsite.tasks.questions.task import Questions, encode_question, prompt_of, question_rows
from offsite.tasks.rows import Row, read_rows
from offsite.tasks.task import Evaluation, HarnessForm, has_probabilities, mean_of
from offsite.tasks.text.packing import window
from offsite.training.progress import track

PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class OpenQuestion:
    """One question as text, its accepted answers, and the prompt's token ids once encoded."""

    prompt: str
    answers: tuple[str, ...]
    where: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenQuestions(Questions):
    """Open questions as their task file describes them."""

    @property
    def metric(self) -> str:
        """``"exact_match"``."""
        return "exact_match"

    def read(self, source: str | Path, *, train: bool = False) -> list[OpenQuestion]:
        """The questions of a data file, as text.

        Raises:
            OffsiteError: missing columns or no answer; file and line are named.
        """
        return [read_question(self.file, row) for row in read_rows(source, self.file.columns)]

    def encode(
        self, question: OpenQuestion, processor: Any, length: int
    ) -> tuple[OpenQuestion, list[int], list[int]]:
        """The question with its prompt's token ids, and those of its first accepted answer."""
        first = self.file.separator + question.answers[0]
        prompt, tails = encode_question(question.prompt, [first], processor, length, question.where)
        return replace(question, ids=tuple(prompt)), prompt, tails[0]

    def harness(self, documents: Sequence[OpenQuestion]) -> HarnessForm:
        """Questions for the harness, judged as here; see :class:`~offsite.tasks.task.Task`."""
        rows = [{"text": q.prompt, "target": list(q.answers)} for q in documents]
        generation = {"until": [], "do_sample": False, "max_gen_toks": self.file.new_tokens}

        def judged(row: Mapping[str, Any], texts: Sequence[str]) -> dict[str, float]:
            return {"exact_match": float(is_right(first_line(texts[0]), row["target"]))}

        options = {"generation_kwargs": generation, "process_results": judged}
        return HarnessForm(rows, ("exact_match",), "generate_until", options)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """Share of questions whose generated answer is an accepted one, with its standard error.

        Case, punctuation and surrounding spaces do not count; an answer ends at its line's end or
        at any token that ends a text for the tokenizer or the model. It is not a number (NaN) where
        the model's logits are not.
        """
        loaded = question_rows(data, self.name)
        prompts = [list(question.ids) for question in loaded.questions]
        found = generate(model, prompts, loaded.processor, self.file.new_tokens, batch_size)
        right = [
            math.nan if text is None else float(is_right(text, question.answers))
            for text, question in zip(found, loaded.questions, strict=True)
        ]
        return mean_of(self.metric, right)


def read_question(file: TaskFile, row: Row) -> OpenQuestion:
    """One question from one row."""
    value = row[file.answer]
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise OffsiteError(
            f"{row.where} needs a text, or a list of texts, in its column '{file.answer}'."
        )
    return OpenQuestion(prompt_of(file, row), tuple(answers), row.where)


def normal(text: str) -> str:
    """A text without case, ASCII punctuation and surrounding or doubled spaces.

    A text of nothing but punctuation keeps it.
    """
    return " ".join(text.lower().translate(PUNCTUATION).split()) or " ".join(text.split())


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether a generated text is one of the accepted answers."""
    return normal(text) in {normal(answer) for answer in answers}


def first_line(text: str) -> str:
    """The first line of a text that is not empty."""
    return text.lstrip("\n").partition("\n")[0]


def stop_tokens(model: nn.Module, processor: Any) -> set[int]:
    """Ids that end a text: the tokenizer's end-of-text, and all that the model generates up to."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = stated if isinstance(stated, (list, tuple)) else [stated]
    return {int(stop) for stop in (processor.eos_token_id, *more) if stop is not None}


def generate(
    model: nn.Module, prompts: Sequence[list[int]], processor: Any, new_tokens: int, batch_size: int
) -> list[str | None]:
    """What the model says after each prompt, greedily, up to the end of the line.

    Args:
        prompts: token ids.
        new_tokens: longest answer, in tokens.

    Returns:
        The answers; None where the logits are not numbers.
    """
    model.eval()
    cached = continues(model, prompts[0] * 2)
    texts: list[str | None] = [""] * len(prompts)
    for part in track(list(same_length(prompts, batch_size)), "answering"):
        ids = torch.tensor([prompts[i] for i in part], device=next(model.parameters()).device)
        found = _generate(ids, model, processor, new_tokens, cached)
        for index, text in zip(part, found, strict=True):
            texts[index] = text
    return texts


def _generate(
    ids: torch.Tensor, model: nn.Module, processor: Any, new_tokens: int, cached: bool
) -> list[str | None]:
    """Answers to prompts (batch, length) of one length."""
    length, limit = ids.shape[1], window(10**9, getattr(model, "config", None))
    read, cache, texts = ids, None, [""] * len(ids)
    stops, odd = stop_tokens(model, processor), torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(min(new_tokens, limit - length)):
        if cached:
            output = model(input_ids=read, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
        else:
            output = forward(model, {"input_ids": read})
        logits = output.logits[:, -1]
        odd |= ~has_probabilities(logits).cpu()
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        read = ids[:, -1:] if cached else ids
        texts = [_answer(row, processor, stops) for row in ids[:, length:].tolist()]
        if all(text.endswith("\n") for text in texts):
            break
    found = zip(texts, odd.tolist(), strict=True)
    return [None if not_a_number else text.rstrip("\n") for text, not_a_number in found]


def _answer(ids: list[int], processor: Any, stops: set[int]) -> str:
    """The text of an answer; it ends with a newline if and only if it is complete."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    text = processor.decode(ids[:end], skip_special_tokens=True).lstrip("\n")
    return first_line(text) + ("\n" if end is not None or "\n" in text else "")
