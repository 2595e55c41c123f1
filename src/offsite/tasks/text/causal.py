"""Causal text: plain text, ``{"text"}`` or ``{"prompt", "completion"}`` lines; loss, perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE, forward
from offsite.tasks.rows import parse_line
from offsite.tasks.task import Evaluation
from offsite.tasks.text.cross_entropy import token_losses
from offsite.training.progress import track

TABLES = (".csv", ".tsv", ".ndjson", ".parquet")


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
        return {"name": self.name, "max_length": self.max_length}

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> Dataset[Any]:
        """Read and pack ``.txt`` or ``.jsonl``; see :class:`~offsite.tasks.task.Task`."""
        if processor is None:
            raise OffsiteError("The model has no tokenizer, so text cannot be read for it.")
        length = window(self.max_length, getattr(model, "config", None))
        documents = read_documents(Path(source))
        if isinstance(documents[0], str) and not self.packed:
            return single(documents, processor, length)  # type: ignore
        if isinstance(documents[0], str):
            return stream(documents, processor, length, source)  # type: ignore
        return pack(documents, processor, length, together=self.packed and restarts(model))  # type: ignore

    def check(self, source: str | Path, processor: Any = None, config: Any = None) -> int:
        """Read a data file without any model and return the number of its documents."""
        return len(read_documents(Path(source)))

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
        losses = token_losses(model, batch)
        return losses.sum() / (losses.numel() if items is None else items)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Dataset[Any], *, batch_size: int = 16) -> Evaluation:
        """Mean loss in nats per token, with perplexity beside it; items are means per row.

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
            items += [part.mean().item() for part in losses.split(rows) if len(part)]
            weights += [tokens for tokens in rows if tokens]
        if not count:
            raise OffsiteError("The evaluation data has no token to predict; give more text.")
        mean = total / count
        extra = {"perplexity": math.exp(min(mean, 700.0))}
        uneven = tuple(weights) if len(set(weights)) > 1 else ()
        return Evaluation(self.metric, mean, False, count, None, extra, tuple(items), uneven)


def window(max_length: int, config: Any) -> int:
    """How many tokens a row may have: ``max_length``, or the model's context where that is less."""
    limit = getattr(config, "max_position_embeddings", None)
    return min(max_length, limit or max_length)


@torch.no_grad()
def restarts(model: Any) -> bool:
    """Whether packed examples do not see each other, tried on two rows that differ in the first.

    Taking position ids is not enough: some families leave them out of their attention mask.
    """
    device = next(model.parameters()).device
    rows = torch.tensor([[5, 6, 5, 5, 6, 6], [6, 5, 6, 5, 6, 6]], device=device)
    positions = torch.tensor([[0, 1, 2] * 2] * 2, device=device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = forward(model, {"input_ids": rows, "position_ids": positions}).logits[:, 3:]
    except (TypeError, ValueError):  # it takes no position ids
        return False
    finally:
        for module, training in modes:
            module.training = training
    noise = max(1e-5, 2 * torch.finfo(logits.dtype).eps) * logits.abs().max()
    return bool((logits[0] - logits[1]).abs().max() <= noise)


def read_documents(path: Path) -> list[str] | list[tuple[str, str]]:
    """The documents of a file: texts, or pairs of prompt and completion.

    Raises:
        OffsiteError: missing, empty, not UTF-8, or a line that is not as described; the line number
            is named, its text never.
    """
    if not path.is_file():
        raise OffsiteError(f"There is no data file '{path}'.")
    suffix = path.suffix.lower()
    if suffix in TABLES:
        raise OffsiteError(
            f"'{path}' is a table, not plain text; write it as JSON lines with \"text\", or "
            '"prompt" and "completion", in a file ending in .jsonl.'
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise OffsiteError(f"'{path}' is not UTF-8 text; convert it first.") from None
    if suffix not in (".jsonl", ".json"):
        if not content.strip():
            raise OffsiteError(f"The data file '{path}' is empty.")
        return [content]
    texts: list[str] = []
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            found = read_line(line, f"Line {number} of '{path}'")
            (texts if isinstance(found, str) else pairs).append(found)  # type: ignore[arg-type]
            if texts and pairs:
                raise OffsiteError(
                    f'Line {number} of \'{path}\' changes between "text" and "prompt"; '
                    "keep one form per file."
                )
    if not texts and not pairs:
        raise OffsiteError(f"The data file '{path}' is empty.")
    return texts or pairs


def read_line(line: str, where: str) -> str | tuple[str, str]:
    """One JSONL line: a text, or a prompt with its completion."""
    row = parse_line(line, where)
    if isinstance(row, dict):
        if isinstance(row.get("text"), str) and row["text"]:
            return str(row["text"])
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str) and completion:
            return prompt, completion
    raise OffsiteError(
        f'{where} needs a "text", or a "prompt" and a "completion", as non-empty strings.'
    )


def encode(processor: Any, text: str) -> list[int]:
    """Token ids without special tokens, however long the text."""
    return list(processor(text, add_special_tokens=False, verbose=False)["input_ids"])


def stream(
    documents: Sequence[str], processor: Any, length: int, source: str | Path
) -> list[dict[str, torch.Tensor]]:
    """Concatenate documents, separated by end-of-text, and cut windows of ``length`` tokens.

    Only the tail shorter than a window is left out, unless it is all there is.
    """
    ids: list[int] = []
    for document in documents:
        ids += encode(processor, document)
        if len(documents) > 1 and processor.eos_token_id is not None:
            ids.append(processor.eos_token_id)
    if len(ids) < 2:
        raise OffsiteError(f"'{source}' holds fewer than two tokens; give more text.")
    length = min(length, len(ids))
    windows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return [{"input_ids": window, "labels": window} for window in windows]


def single(documents: Sequence[str], processor: Any, length: int) -> list[dict[str, torch.Tensor]]:
    """One row a document: its first ``length`` tokens, with an end of text where there is room."""
    end = [] if processor.eos_token_id is None else [processor.eos_token_id]
    rows = [torch.tensor((encode(processor, text) + end)[:length]) for text in documents]
    return [{"input_ids": row, "labels": row} for row in rows if len(row) > 1]


def pack(
    pairs: Sequence[tuple[str, str]], processor: Any, length: int, *, together: bool
) -> list[dict[str, torch.Tensor]]:
    """Rows of whole prompt-completion examples, first fit by decreasing length.

    Position ids restart at each example, which is how transformers keeps packed examples apart.
    An example longer than ``length`` loses the start of its prompt, then the end of its completion.
    """
    end = [] if processor.eos_token_id is None else [processor.eos_token_id]
    rows = [labelled(*example) for example in examples(pairs, processor, end, length)]
    return pack_ids(rows, length, together=together)


def labelled(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """Token ids of prompt and answer, and labels that leave the prompt out."""
    return prompt + answer, [IGNORE] * max(len(prompt), 1) + answer[not prompt :]


def pack_ids(
    encoded: Sequence[tuple[list[int], list[int]]], length: int, *, together: bool
) -> list[dict[str, torch.Tensor]]:
    """Rows of examples given as token ids and labels; see :func:`pack`."""
    bins: list[tuple[list[int], list[int], list[int]]] = []
    for ids, labels in sorted(encoded, key=lambda example: -len(example[0])):
        row = next((b for b in bins[-64:] if together and len(b[0]) + len(ids) <= length), None)
        if row is None:
            row = ([], [], [])
            bins.append(row)
        for target, values in zip(row, (ids, labels, list(range(len(ids)))), strict=True):
            target.extend(values)
    keys = ("input_ids", "labels", "position_ids") if together else ("input_ids", "labels")
    return [{k: torch.tensor(v) for k, v in zip(keys, row, strict=False)} for row in bins]


def examples(
    pairs: Sequence[tuple[str, str]], processor: Any, end: list[int], length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of prompt and completion, cut to fit ``length``."""
    for prompt, completion in pairs:
        answer = (encode(processor, completion) + end)[: length - 1]
        yield encode(processor, prompt)[-(length - len(answer)) :], answer
