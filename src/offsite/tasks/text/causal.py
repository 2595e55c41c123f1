"""Causal text: plain text, ``{"text"}`` or ``{"prompt", "completion"}`` lines; loss, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE
from offsite.tasks.data import rows_of
from offsite.tasks.task import Evaluation, HarnessForm, perplexity
from offsite.tasks.text.cross_entropy import summed_loss, token_losses
from offsite.tasks.text.documents import read_documents
from offsite.tasks.text.packing import (
    Labelled,
    beginning,
    example,
    pack,
    plain_rows,
    restarts,
    window,
    windows,
)
from offsite.tasks.text.tokens import Convention, check_embedded, encode, encode_after
from offsite.training.progress import track


@dataclass(frozen=True)
class Prepared:
    """Examples as token ids, not yet rows of one model.

    Attributes:
        examples: token ids and labels of each.
        length: tokens a row may have.
        processor: the tokenizer that made them.
        windows: whether the examples are rows already, such as windows of running text.
        questions: what is scored instead of the rows, for tasks of questions.
    """

    examples: Sequence[Labelled]
    length: int
    processor: Any
    windows: bool = False
    questions: Sequence[Any] = ()


@dataclass(frozen=True)
class CausalText:
    """Language modelling of text in windows of ``max_length`` tokens.

    Plain text is one stream cut into windows without padding. A completion is trained on without
    its prompt; whole examples share a window where the model keeps packed examples apart.

    Attributes:
        max_length: tokens of a row.
        packed: whether a row may hold several examples. Without it every line of a ``.jsonl`` is
            one row, cut to ``max_length``, as differential privacy needs it.
    """

    max_length: int = 512
    packed: bool = True

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    higher_is_better: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """``"text"``."""
        return "text"

    @property
    def metric(self) -> str:
        """``"loss"``, in nats per token."""
        return "loss"

    def identity(self) -> dict[str, Any]:
        """Name and length; see :class:`~offsite.tasks.task.Task`."""
        return {"name": self.name, "max_length": self.max_length, "packed": self.packed}

    def one_by_one(self) -> CausalText:
        """This task with one example a row; see :class:`~offsite.tasks.task.Task`."""
        return replace(self, packed=False)

    def default_source(self, split: str) -> Path | None:
        """None: no file names data; see :class:`~offsite.tasks.task.Task`."""
        return None

    def read(self, source: str | Path, *, train: bool = False) -> list[Any]:
        """The :class:`~offsite.tasks.text.documents.Document` of each example of a file."""
        return list(read_documents(source))

    def prepare(self, documents: Sequence[Any], processor: Any, config: Any) -> Prepared:
        """Token ids and labels of documents; see :class:`~offsite.tasks.task.Task`."""
        check_processor(processor)
        around, length = Convention.of(processor), window(self.max_length, config)
        if documents[0].prompt is None:
            texts = [encode(processor, document.text) for document in documents]
            if not self.packed:
                alone = [beginning(text, around, length) for text in texts]
                found = [one for one in alone if len(one[0]) > 1]
                return self.prepared(found, processor, config, windows=True)
            found = windows(texts, around, length)
            if not found or sum(map(len, texts)) < 2:
                raise OffsiteError(
                    f"{documents[0].where} has fewer than two tokens; give more text."
                )
            return self.prepared(found, processor, config, windows=True)
        pairs = []
        for document in documents:
            prompt, answers = encode_after(
                processor, document.prompt, [document.text], document.where
            )
            pairs.append(example(prompt, answers[0], around, length))
        return self.prepared(pairs, processor, config)

    def prepared(
        self, encoded: list[Labelled], processor: Any, config: Any, **more: Any
    ) -> Prepared:
        """Examples with the length of their rows, once the model can embed their tokens.

        Raises:
            OffsiteError: a token that the model has no embedding for.
        """
        check_embedded((ids for ids, _ in encoded), processor, config)
        return Prepared(encoded, window(self.max_length, config), processor, **more)

    def rows(self, prepared: Prepared, model: nn.Module, *, train: bool = False) -> Dataset[Any]:
        """Rows to learn and score; see :class:`~offsite.tasks.task.Task`."""
        if prepared.windows:
            return plain_rows(prepared.examples)  # type: ignore[return-value]
        return pack(prepared.examples, prepared.length, together=self.packed and restarts(model))  # type: ignore[return-value]

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> Dataset[Any]:
        """All three stages at once; see :class:`~offsite.tasks.task.Task`."""
        loaded: Dataset[Any] = rows_of(self, source, processor, model, train=train)
        return loaded

    def labels(self, rows: Any) -> tuple[str, ...]:
        """No classes; see :class:`~offsite.tasks.task.Task`."""
        return ()

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack rows; shorter ones are padded on the right, where no target looks."""
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "labels": IGNORE, "position_ids": 0}
        batch = {
            key: torch.stack(
                [
                    nn.functional.pad(row[key], (0, longest - len(row[key])), value=fill[key])
                    for row in rows
                ]
            )
            for key in rows[0]
        }
        batch["labels"][:, 0] = IGNORE  # no target: nothing comes before it, so it must not count
        return batch

    def loss(
        self, model: nn.Module, batch: Mapping[str, Any], items: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross entropy of the targets, in nats per token."""
        if items is None:
            return token_losses(model, batch).mean()
        return summed_loss(model, batch) / items

    def harness(self, documents: Sequence[Any]) -> HarnessForm:
        """Plain text for the harness's perplexities; see :class:`~offsite.tasks.task.Task`."""
        if documents[0].prompt is not None:
            raise OffsiteError(
                f"{documents[0].where} is a completion; lm-eval has no perplexity of completions, "
                "so score it without --harness."
            )
        rows = [{"text": "", "target": document.text} for document in documents]
        metrics = ("word_perplexity", "byte_perplexity", "bits_per_byte")
        return HarnessForm(rows, metrics, "loglikelihood_rolling")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """Mean loss in nats per token, and perplexity; items are means per row.

        Rows of different numbers of tokens have these as weights.
        """
        device = next(model.parameters()).device
        total, count = 0.0, 0
        items: list[float] = []
        weights: list[int] = []
        model.eval()
        loader = DataLoader(data, batch_size=batch_size, collate_fn=self.collate)
        for batch in track(loader, "evaluating"):
            batch = {key: value.to(device) for key, value in batch.items()}
            losses = token_losses(model, batch).double()
            total, count = total + losses.sum().item(), count + losses.numel()
            rows = (batch["labels"][:, 1:] != IGNORE).sum(dim=1).tolist()
            items += [part.mean().item() for part in torch.split(losses, rows) if len(part)]
            weights += [tokens for tokens in rows if tokens]
        if not count:
            raise OffsiteError("The evaluation data has no token to predict; give more text.")
        mean = total / count
        extra = {"perplexity": perplexity(mean)}
        uneven = tuple(weights) if len(set(weights)) > 1 else ()
        return Evaluation(self.metric, mean, False, count, None, extra, tuple(items), uneven)


def check_processor(processor: Any) -> None:
    """Refuse a model that came without a tokenizer."""
    if processor is None:
        raise OffsiteError(
            "The model has no tokenizer, so text cannot be read for it; put its tokenizer files "
            "beside its weights."
        )
