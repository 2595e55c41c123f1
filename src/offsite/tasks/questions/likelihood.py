"""Log-likelihoods of the choices of questions, each prompt computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.replay import forward
from offsite.training.progress import track

TOLERANCE = 0.2  # nats; what bfloat16 rounds away is far below, a wrong position far above
EXACT = 0.01  # the same where the model is in float32


@dataclass(frozen=True)
class Question:
    """One question as token ids.

    Attributes:
        prompt: ids that all choices follow; at least one.
        choices: ids of each choice; at least one each.
        answer: number of the right choice.
        lengths: characters of each choice, for the length-normalised score.
    """

    prompt: list[int]
    choices: list[list[int]]
    answer: int
    lengths: tuple[int, ...]


def choice_scores(
    model: nn.Module, questions: Sequence[Question], batch_size: int = 16
) -> list[list[float]]:
    """Log-likelihood (nats) of every choice of every question, in the order given.

    The keys and values of prompts are kept, and each choice is run on top of them. Prompts of about
    the same length make a batch, padded on the left; of exactly the same length where the model
    cannot be padded.

    Args:
        batch_size: choices at a time, were each to run with its whole prompt; where a prompt runs
            once, as many tokens hold more of them.
    """
    model.eval()
    scores: list[list[float]] = [[] for _ in questions]
    most = max(len(question.choices) for question in questions)
    order = sorted(range(len(questions)), key=lambda i: -tokens(questions[i]))
    padded = pads(model, few(questions[order[0]], 1), few(questions[order[-1]], 2))
    cached = padded or continues(model, questions[0].prompt + questions[0].choices[0])
    score = scores_with_cache if cached else scores_without_cache
    if padded:
        parts = list(by_tokens(questions, order, batch_size))
    elif not cached:
        parts = list(in_batches(order, batch_size // most))
    else:
        parts = list(same_length([q.prompt for q in questions], batch_size // most))
    for part in track(parts, "scoring choices"):
        found = score(model, [questions[index] for index in part])
        for index, values in zip(part, found, strict=True):
            scores[index] = values
    return scores


def check_told_apart(scores: Sequence[Sequence[float]]) -> None:
    """Refuse scores in which all choices of every question tie: the first would always win.

    Raises:
        OffsiteError: they do.
    """
    if scores and all(len(set(values)) == 1 for values in scores):
        raise OffsiteError(
            "The model gives all choices of every question the same likelihood, so an accuracy "
            "would only count how often the right choice stands first; check the model."
        )


@torch.no_grad()
def continues(model: nn.Module, ids: Sequence[int]) -> bool:
    """Whether a model goes on rightly from kept keys and values, tried on at least two token ids.

    Blocks that stand twice, or that are no attention blocks, can break it; then whatever is scored
    runs with its whole prompt, which is slower and needs nothing but a forward.
    """
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    whole = forward(model, {"input_ids": row}).logits[:, -1].float().log_softmax(dim=-1)
    half = row.shape[1] // 2
    try:
        cache = model(input_ids=row[:, :half], use_cache=True).past_key_values
        rest = model(input_ids=row[:, half:], past_key_values=cache, use_cache=True)
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return False
    return bool((rest.logits[:, -1].float().log_softmax(dim=-1) - whole).abs().max() < TOLERANCE)


def tokens(question: Question) -> int:
    """How many tokens a question takes in a batch."""
    return len(question.prompt) + len(question.choices) * max(map(len, question.choices))


def by_tokens(
    questions: Sequence[Question], order: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Batches of as many tokens as ``batch_size`` choices take with their whole prompts.

    Args:
        order: numbers of the questions, the largest first, which stands for its batch.
    """
    rest = list(order)
    while rest:
        first = questions[rest[0]]
        room = batch_size * (len(first.prompt) + max(map(len, first.choices)))
        size = max(1, room // tokens(first))
        yield rest[:size]
        del rest[:size]


def few(question: Question, count: int) -> Question:
    """A question with its first choices alone, which is quicker to try."""
    return replace(question, choices=question.choices[:count])


@torch.no_grad()
def pads(model: nn.Module, one: Question, two: Question) -> bool:
    """Whether a model scores two questions in one batch, padded and from kept keys, rightly."""
    try:
        found = scores_with_cache(model, [one, two])
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return False
    single = next(model.parameters()).dtype == torch.float32
    limit, whole = EXACT if single else TOLERANCE, scores_without_cache(model, [one, two])
    pairs = [p for both in zip(found, whole, strict=True) for p in zip(*both, strict=True)]
    return all(abs(a - b) < limit for a, b in pairs)


def same_length(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Batches of numbers of prompts that have one length, the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for _, group in groupby(order, key=lambda i: len(prompts[i])):
        yield from in_batches(list(group), size)


def in_batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cut a sequence into lists of ``size``, at least 1; the last may be shorter."""
    size = max(1, size)
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def scores_with_cache(model: nn.Module, questions: Sequence[Question]) -> list[list[float]]:
    """Prompts first, then all choices on top of their keys and values.

    Prompts of different lengths are padded on the left, so that a choice follows its prompt at once
    and a window of attention holds what it would hold without padding.
    """
    device = next(model.parameters()).device
    prompts = [q.prompt for q in questions]
    owners = [i for i, q in enumerate(questions) for _ in q.choices]
    choices = [choice for q in questions for choice in q.choices]
    widest, longest = max(map(len, prompts)), max(map(len, choices))
    ids = torch.tensor([[0] * (widest - len(row)) + row for row in prompts], device=device)
    lengths = torch.tensor([[len(row)] for row in prompts], device=device)
    places = torch.arange(widest, device=device) - (widest - lengths)
    first: dict[str, Any] = {"logits_to_keep": 1} if keeps_few(model) else {}
    padded = bool((lengths < widest).any())
    if padded:
        first |= {"attention_mask": (places >= 0).long(), "position_ids": places.clamp(min=0)}
    output = model(input_ids=ids, use_cache=longest > 1, **first)
    rows = torch.tensor(owners, device=device)
    logits = output.logits[:, -1:][rows]
    targets = _padded(choices, longest).to(device)
    if longest > 1:
        cache, given = output.past_key_values, targets[:, :-1].clamp(min=0)
        cache.batch_select_indices(rows)
        rest: dict[str, Any] = {}
        if padded:
            mask = torch.cat([first["attention_mask"][rows], torch.ones_like(given)], dim=1)
            after = lengths[rows] + torch.arange(longest - 1, device=device)
            rest = {"attention_mask": mask, "position_ids": after}
        output = model(input_ids=given, past_key_values=cache, use_cache=True, **rest)
        logits = torch.cat([logits, output.logits], dim=1)
    return _regroup(_gather(logits, targets), questions)


def keeps_few(model: nn.Module) -> bool:
    """Whether a model can be asked for the logits of the last position alone."""
    return "logits_to_keep" in signature(model.forward).parameters


def scores_without_cache(model: nn.Module, questions: Sequence[Question]) -> list[list[float]]:
    """Every choice with its whole prompt; needs nothing of the model but its forward."""
    device = next(model.parameters()).device
    pairs = [(q.prompt, choice) for q in questions for choice in q.choices]
    longest = max(len(prompt) + len(choice) for prompt, choice in pairs)
    ids = _padded([prompt + choice for prompt, choice in pairs], longest)
    targets = ids.clone()
    for row, (prompt, _) in zip(targets, pairs, strict=True):
        row[: len(prompt)] = -1
    logits = forward(model, {"input_ids": ids[:, :-1].clamp(min=0).to(device)}).logits
    return _regroup(_gather(logits, targets[:, 1:].to(device)), questions)


def _padded(rows: Sequence[list[int]], longest: int) -> torch.Tensor:
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


def _gather(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Sums over the targets of their log-probability; -1 is no target."""
    known = targets >= 0
    losses = nn.functional.cross_entropy(logits[known].float(), targets[known], reduction="none")
    sums = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)
    sums.index_add_(0, known.nonzero()[:, 0], losses.double())
    return [-value for value in sums.tolist()]


def _regroup(values: Sequence[float], questions: Sequence[Question]) -> list[list[float]]:
    found = iter(values)
    return [[next(found) for _ in q.choices] for q in questions]
