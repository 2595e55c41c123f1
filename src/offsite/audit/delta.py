"""The data owner's audit before sending a delta: how much of the data can be read from it?

The texts are split in halves. One half is tuned on, as for the real delta, together with canaries;
the other is never seen. Then two attacks are tried on the tuned model: which texts were
tuned on, and which code belongs to which name. Both compare losses with those of the untuned model,
which the model owner has too.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offsite.audit.canaries import exposures, make_canaries, write_with_canaries
from offsite.audit.membership import Membership, membership
from offsite.deltas.method import Method
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.replay import IGNORE
from offsite.tasks.text.causal import CausalText
from offsite.tasks.text.cross_entropy import token_losses
from offsite.tasks.text.documents import read_documents
from offsite.tasks.text.tokens import encode
from offsite.training.dp import PrivacyBudget
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune

FEWEST = 40
Plug = Callable[[Delta], nn.Module]


@dataclass(frozen=True)
class Leak:
    """What the attacks find through one model.

    ``exposure`` is the mean over canaries that stood so often in the data, in bits.
    """

    through: str
    membership: Membership
    exposure: dict[int, float]


@dataclass(frozen=True)
class DeltaAudit:
    """The outcome: ``leaks``, one a model; ``largest`` is the largest exposure there can be."""

    members: int
    others: int
    largest: float
    leaks: tuple[Leak, ...]
    epsilon: float | None


def audit_delta(
    offer: Offer,
    source: str | Path,
    method: Method,
    *,
    options: TrainOptions,
    max_length: int = 512,
    device: torch.device,
    budget: PrivacyBudget | None = None,
    plug: Plug | None = None,
    full: nn.Module | None = None,
    canaries: int = 30,
    candidates: int = 500,
) -> DeltaAudit:
    """Tune on half of the data with canaries in it, and attack the result.

    Args:
        offer: the offer; its model is not changed.
        source: a text file, its paragraphs being the texts, or a ``.jsonl`` with ``text``.
        method, options, budget: as the real delta is tuned.
        plug: puts a delta into the full model, where somebody has both; ``full`` is that model.

    Raises:
        OffsiteError: fewer than 40 texts.
    """
    texts = read_texts(Path(source))
    draw = random.Random(options.seed)
    draw.shuffle(texts)
    half = len(texts) // 2
    secrets = make_canaries(canaries, options.seed)
    task = CausalText(max_length)
    with tempfile.TemporaryDirectory(prefix="offsite-") as folder:
        path = Path(folder) / "with-canaries.jsonl"
        write_with_canaries(path, texts[:half], secrets, options.seed)
        tuned = run_tune(
            offer, str(path), method, options=options, task=task, device=device, budget=budget
        )
    looked: list[tuple[str, nn.Module, nn.Module]] = [("emulator", tuned.model, offer.model)]
    if plug is not None and full is not None:
        looked.append(("plug-in", plug(tuned.delta), full))
    leaks = []
    for name, model, before in looked:
        score = compared(model.to(device), before.to(device), offer.processor, max_length, device)
        found = exposures(secrets, score, candidates, options.seed)
        by_times = {
            times: mean([e for e, c in zip(found, secrets, strict=True) if c.times == times])
            for times in sorted({c.times for c in secrets})
        }
        inside, outside = score(texts[:half]), score(texts[half : 2 * half])
        leaks.append(Leak(name, membership(inside, outside, options.seed), by_times))
    spent = tuned.delta.manifest.dp
    largest = torch.tensor(candidates + 1.0).log2().item()
    return DeltaAudit(half, half, largest, tuple(leaks), None if spent is None else spent.epsilon)


def read_texts(path: Path) -> list[str]:
    """The texts of a file: one a line of ``.jsonl``, else one a paragraph.

    Raises:
        OffsiteError: fewer than 40, or prompts with completions.
    """
    documents = read_documents(path)
    if documents[0].prompt is not None:
        raise OffsiteError(
            f"'{path}' has prompts with completions; the audit reads plain texts, so give JSON "
            'lines with "text".'
        )
    texts = [document.text for document in documents]
    if len(texts) == 1:
        texts = [part for part in texts[0].split("\n\n") if len(part) > 100]
    if len(texts) < FEWEST:
        raise OffsiteError(
            f"'{path}' has {len(texts)} texts that can be audited; give {FEWEST} or more "
            'paragraphs of 100 characters, or JSON lines with "text".'
        )
    return texts


def compared(
    model: nn.Module, before: nn.Module, processor: Any, length: int, device: torch.device
) -> Callable[[Sequence[str]], list[float]]:
    """A score of texts: the mean loss of a token now, less that of the untuned model."""

    def score(texts: Sequence[str]) -> list[float]:
        now, then = (losses(m, texts, processor, length, device) for m in (model, before))
        return [a - b for a, b in zip(now, then, strict=True)]

    return score


@torch.no_grad()
def losses(
    model: nn.Module, texts: Sequence[str], processor: Any, length: int, device: torch.device
) -> list[float]:
    """Mean cross entropy of a token of each text, in nats; texts of like length share a batch."""
    model.eval()
    rows = [torch.tensor(encode(processor, text)[:length]) for text in texts]
    task, found = CausalText(length), [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(rows), 32):
        places = order[start : start + 32]
        part = [{"input_ids": rows[place], "labels": rows[place]} for place in places]
        batch = {key: value.to(device) for key, value in task.collate(part).items()}
        counts = (batch["labels"][:, 1:] != IGNORE).sum(1).tolist()
        each = torch.split(token_losses(model, batch), counts)
        for place, row in zip(places, each, strict=True):
            found[place] = float(row.sum()) / max(1, len(row))
    return found


def mean(values: Sequence[float]) -> float:
    """The mean of some values."""
    return sum(values) / len(values)
