"""Canaries: made-up secrets planted in the data, to measure whether a delta memorised them.

Exposure is the measure of Carlini et al. (The Secret Sharer, USENIX Security 2019, section 4.3):
log2 of the number of candidates minus log2 of the secret's rank among them by loss. A secret that
nobody learnt has an exposure of about 1; one that stands first has the most there is.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from offsite.files import write_file

SENTENCE = "The access code of {name} is {code}."
TIMES = (1, 4, 16)  # how often a secret is in the data
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve")


@dataclass(frozen=True)
class Canary:
    """A secret: who, six digits, and how often it is in the data."""

    name: str
    code: str
    times: int

    def text(self, code: str | None = None) -> str:
        """The sentence, with another code where the secret is ranked among others."""
        return SENTENCE.format(name=self.name, code=code or self.code)


def make_canaries(count: int, seed: int) -> list[Canary]:
    """Secrets, repeated 1, 4 and 16 times in turn."""
    draw = random.Random(seed)
    names: list[str] = []
    while len(names) < count:
        name = "".join(draw.sample(SYLLABLES, 4)).capitalize()
        if name not in names:
            names.append(name)
    return [
        Canary(name, f"{draw.randrange(10**6):06d}", TIMES[i % len(TIMES)])
        for i, name in enumerate(names)
    ]


def write_with_canaries(
    path: Path, texts: Sequence[str], canaries: Sequence[Canary], seed: int
) -> None:
    """Texts and canaries in one shuffled file of JSON lines, one example a line."""
    lines = [*texts, *(c.text() for c in canaries for _ in range(c.times))]
    random.Random(seed).shuffle(lines)
    write_file(path, "\n".join(json.dumps({"text": line}) for line in lines) + "\n", private=True)


def exposures(
    canaries: Sequence[Canary],
    score: Callable[[Sequence[str]], Sequence[float]],
    candidates: int,
    seed: int,
) -> list[float]:
    """The exposure of each canary.

    Args:
        score: how unlikely texts are; smaller where a model knows them better.
        candidates: other codes each secret is ranked among.
    """
    draw = random.Random(seed)
    codes = [f"{draw.randrange(10**6):06d}" for _ in range(candidates)]
    found = []
    for canary in canaries:
        scores = score([canary.text(), *(canary.text(c) for c in codes if c != canary.code)])
        rank = 1 + sum(other < scores[0] for other in scores[1:])
        found.append(math.log2(len(scores)) - math.log2(rank))
    return found
