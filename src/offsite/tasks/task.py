"""A task: it turns data into batches, and measures one metric.

Everything else (tuning, distilling, scoring, the lab) is written once against this protocol; a task
knows nothing of offers and deltas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from offsite.errors import OffsiteError


@dataclass(frozen=True)
class Evaluation:
    """One number on one data set.

    Attributes:
        metric: ``"loss"`` (nats per token), ``"accuracy"`` (0..1) ...
        value: the number.
        higher_is_better: its direction.
        count: how many tokens, questions or images it is the mean of.
        stderr: standard error of the mean, where known.
        extra: further figures of the same run, such as ``{"perplexity": 31.8}``.
        items: per-item values in data order (for paired intervals), where kept.
        weights: what each item counts in ``value`` (tokens); empty where all count alike.
    """

    metric: str
    value: float
    higher_is_better: bool
    count: int
    stderr: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    items: tuple[float, ...] = ()
    weights: tuple[int, ...] = ()


@dataclass(frozen=True)
class HarnessForm:
    """Examples of a task in the terms of EleutherAI's lm-eval.

    Attributes:
        rows: one mapping for each example, with the ``text`` that is read and the ``target``.
        metrics: the harness's names of them, the main one first.
        output: its output type, such as ``"multiple_choice"``.
        options: further entries of its task definition.
    """

    rows: Sequence[Mapping[str, Any]]
    metrics: tuple[str, ...]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)


def no_harness(task: str) -> OffsiteError:
    """The refusal of a task that lm-eval has no form for."""
    return OffsiteError(f"lm-eval cannot score the task '{task}'; score it without --harness.")


def has_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Where a softmax over the last dimension gives numbers.

    It gives none where a logit is NaN or plus infinity, or where all are minus infinity.
    """
    return logits.amax(dim=-1).isfinite()


def mean_of(metric: str, values: Sequence[float], **extra: float) -> Evaluation:
    """The mean of per-item values where larger is better, with its standard error."""
    count = len(values)
    mean = sum(values) / count
    squares = sum((value - mean) ** 2 for value in values)
    stderr = (squares / (count - 1) / count) ** 0.5 if count > 1 else None
    return Evaluation(metric, mean, True, count, stderr, extra, tuple(values))


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a loss in nats per token; infinite where no float is that large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class Task(Protocol):
    """One kind of private data; ``name`` is what :func:`offsite.tasks.load_task` knows it by.

    Data becomes rows in three stages: :meth:`read` needs only the file, :meth:`prepare` the
    model's tokenizer or image processor and its configuration, :meth:`rows` the model. So whatever
    is wrong with the data is found before any weights are read, and nothing is read twice.

    Attributes:
        auto_class: the transformers auto class of the models it needs.
        higher_is_better: direction of the metric.
    """

    auto_class: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def max_length(self) -> int | None:
        """Tokens a row may have; None for what is not text."""

    def identity(self) -> dict[str, Any]:
        """All that the rows, the loss and the metric depend on besides the data, as JSON."""

    def one_by_one(self) -> Task:
        """This task for differential privacy: each example is a row that no other changes."""

    def default_source(self, split: str) -> Path | None:
        """The data that a task file names for ``"train"`` or ``"test"``, or None."""

    def read(self, source: str | Path, *, train: bool = False) -> Any:
        """First stage: the examples of a file or folder, each with its place in it.

        Raises:
            OffsiteError: missing or malformed data, naming file and line but never their text.
        """

    def prepare(self, documents: Any, processor: Any, config: Any) -> Any:
        """Second stage: examples as a model of this tokenizer and configuration reads them.

        Args:
            documents: what :meth:`read` returned.
            processor: the tokenizer or image processor.
            config: the model's configuration, for its context length and vocabulary; may be None.

        Raises:
            OffsiteError: no processor, or an example that it or the model cannot read; file and
                line are named.
        """

    def rows(self, prepared: Any, model: nn.Module, *, train: bool = False) -> Dataset[Any]:
        """Third stage: rows for one model; ``train`` turns augmentation on where there is any."""

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> Dataset[Any]:
        """All three stages at once."""

    def labels(self, rows: Any) -> tuple[str, ...]:
        """Names of the classes of some rows, in the order of a model's outputs; none for text."""

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch of rows as tensors."""

    def loss(
        self, model: nn.Module, batch: Mapping[str, Any], items: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The training loss; ``items`` is the number of targets in the whole accumulated batch."""

    def harness(self, documents: Any) -> HarnessForm:
        """Documents for EleutherAI's lm-eval.

        Raises:
            OffsiteError: lm-eval has no form for such data.
        """

    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """The task's metric of a model on a data set."""
