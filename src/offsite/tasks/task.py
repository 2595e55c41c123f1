"""What a task is: data in, batches and one metric out.

Everything else (tuning, distilling, scoring, the lab) is written once against this protocol; a task
knows nothing of offers and deltas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset


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


def mean_of(metric: str, values: Sequence[float], **extra: float) -> Evaluation:
    """The mean of per-item values where larger is better, with its standard error."""
    count = len(values)
    mean = sum(values) / count
    squares = sum((value - mean) ** 2 for value in values)
    stderr = (squares / (count - 1) / count) ** 0.5 if count > 1 else None
    return Evaluation(metric, mean, True, count, stderr, extra, tuple(values))


class Task(Protocol):
    """One kind of private data; ``name`` is what :func:`offsite.tasks.load_task` knows it by."""

    auto_class: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str: ...

    def identity(self) -> dict[str, Any]:
        """All that the rows, the loss and the metric depend on beside the data, as JSON."""

    def load(self, source: str | Path, processor: Any, model: Any, *, train: bool) -> Dataset[Any]:
        """Read a data set into rows; ``train`` turns augmentation on where there is any.

        Raises:
            OffsiteError: missing or malformed data, naming file and line but never their text.
        """

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch of rows as tensors."""

    def loss(
        self, model: nn.Module, batch: Mapping[str, Any], items: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The training loss; ``items`` is the number of targets in the whole accumulated batch."""

    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """The task's metric of a model on a data set."""
