"""Rows of tokens: windows of running text, and whole examples packed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from offsite.model.replay import IGNORE, forward
from offsite.tasks.text.tokens import Convention

Labelled = tuple[list[int], list[int]]  # token ids; labels, IGNORE at what is not learnt


def window(max_length: int, config: Any) -> int:
    """How many tokens a row may have: ``max_length``, or the model's context where that is less."""
    limit = getattr(config, "max_position_embeddings", None)
    return min(max_length, limit or max_length)


def windows(documents: Sequence[list[int]], around: Convention, length: int) -> list[Labelled]:
    """Documents one after another, cut into windows of ``length`` tokens.

    Several documents are separated as the tokenizer's convention ends and begins a text. Each
    window starts with the begin token where the tokenizer adds one; that token is not learnt. Only
    the tail shorter than a window is left out, unless it is all there is.
    """
    begin = list(around.begin)
    ids: list[int] = []
    labels: list[int] = []
    begun: set[int] = set()  # where a document begins
    for document in documents:
        begun.add(len(ids))
        whole = around.begun(around.ended(document) if len(documents) > 1 else document)
        ids += whole
        labels += [IGNORE] * len(begin) + whole[len(begin) :]
    length = min(length, len(ids))
    found: list[Labelled] = []
    place, step = 0, length - len(begin)
    while step > 0:
        if place in begun:
            place += len(begin)  # the window's own begin token is there already
        part = slice(place, place + step)
        if len(ids[part]) < step:
            break
        found.append((begin + ids[part], [IGNORE] * len(begin) + labels[part]))
        place += step
    return found


def beginning(document: list[int], around: Convention, length: int) -> Labelled:
    """The first ``length`` tokens of a text as the tokenizer begins and ends one."""
    ids = around.begun(around.ended(document))[:length]
    return ids, [IGNORE] * len(around.begin) + ids[len(around.begin) :]


def example(prompt: list[int], answer: list[int], around: Convention, length: int) -> Labelled:
    """Token ids of a prompt with its answer, and labels that leave the prompt out.

    What is over ``length`` is cut from the start of the prompt, then from the end of the answer;
    the begin token stays.
    """
    begin = list(around.begin)
    prompt = around.begun(prompt)[len(begin) :]
    answer = around.ended(answer)[: max(1, length - max(1, len(begin)))]
    room = length - len(begin) - len(answer)
    start = begin + (prompt[-room:] if room > 0 else [])
    return start + answer, [IGNORE] * max(len(start), 1) + answer[not start :]


def plain_rows(encoded: Sequence[Labelled]) -> list[dict[str, torch.Tensor]]:
    """One row for each window."""
    return [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)} for ids, labels in encoded
    ]


def pack(encoded: Sequence[Labelled], length: int, *, together: bool) -> list[dict[str, Any]]:
    """Rows of whole examples, first fit by decreasing length; alone unless ``together``.

    Position ids restart at each example, which is how transformers keeps packed examples apart.
    """
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


@torch.no_grad()
def restarts(model: nn.Module) -> bool:
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
