"""Log-likelihoods of the choices of questions, each prompt computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from offsite.model.replay import forward
from offsite.training.progress import track

TOLERANCE = 0.2  # nats; what bfloat16 rounds away is far below, a wrong position far above


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

    Prompts of equal length make a batch without padding; their keys and values are kept and each
    choice is run on top of them.

    Args:
        batch_size: choices at a time.
    """
    model.eval()
    trial = questions[0].prompt + questions[0].choices[0]
    score = scores_with_cache if continues(model, trial) else scores_without_cache
    scores: list[list[float]] = [[] for _ in questions]
    most = max(len(question.choices) for question in questions)
    parts = list(same_length([q.prompt for q in questions], batch_size // most))
    for part in track(parts, "scoring choices"):
        found = score(model, [questions[index] for index in part])
        for index, values in zip(part, found, strict=True):
            scores[index] = values
    return scores


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
    """Prompts of one length first, then all choices on top of their keys and values."""
    device = next(model.parameters()).device
    prompts = torch.tensor([q.prompt for q in questions], device=device)
    owners = [i for i, q in enumerate(questions) for _ in q.choices]
    choices = [choice for q in questions for choice in q.choices]
    longest = max(map(len, choices))
    output = model(input_ids=prompts, use_cache=longest > 1)
    rows = torch.tensor(owners, device=device)
    logits = output.logits[:, -1:][rows]
    targets = _padded(choices, longest).to(device)
    if longest > 1:
        cache = output.past_key_values
        cache.batch_select_indices(rows)
        rest = model(input_ids=targets[:, :-1].clamp(min=0), past_key_values=cache, use_cache=True)
        logits = torch.cat([logits, rest.logits], dim=1)
    return _regroup(_gather(logits, targets), questions)


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
    losses = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=-1, reduction="none"
    )
    return [-value for value in losses.double().sum(dim=1).tolist()]


def _regroup(values: Sequence[float], questions: Sequence[Question]) -> list[list[float]]:
    found = iter(values)
    return [[next(found) for _ in q.choices] for q in questions]
