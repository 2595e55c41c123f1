"""The owner's audit: how much of the model do attackers recover from an offer?

Every attacker has the offer and public text, and is tried at several learning rates and numbers of
tokens. Rates and variants are chosen on validation rows; what is reported is measured on test rows.
The *share recovered* is the part that an attacker closes of the distance in the metric from the
offer as shipped to the full model. A model of the same shape trained from random weights shows how
much of that the text alone gives. An audit gives a lower bound: a better attacker recovers more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from offsite.audit import rebuilt
from offsite.audit.training import Effort, fitted, random_weights, worth
from offsite.deltas.method import Method
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError
from offsite.exchange.commitment import committed
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.blocks import get_blocks
from offsite.owner.plugging import merge_delta
from offsite.tasks.task import Task
from offsite.tuner.tuning import run_tune

SHIPPED = "as shipped"
REFILLED = "gaps refilled with the nearest blocks"
CONTROL = "random weights, all tuned (control)"
FEWEST = 20


@dataclass(frozen=True)
class Attack:
    """What one attacker reached.

    Attributes:
        name: which attacker.
        tokens: training tokens it used; 0 without training.
        value: the task's metric on test rows.
        recovered: share of the distance from the offer as shipped to the full model; 1 is all.
        rate: the learning rate that was best on validation rows.
    """

    name: str
    tokens: int
    value: float
    recovered: float
    rate: float | None = None


@dataclass(frozen=True)
class Margin:
    """The plug-in against the best attacker on equal data and steps.

    ``margin`` is the plug-in's lead in the metric, larger is better for the owner.
    """

    plug_in: float
    attacker: float
    margin: float


@dataclass(frozen=True)
class OfferAudit:
    """The outcome: every attack, the control included, and what they are measured against."""

    metric: str
    higher_is_better: bool
    full: float
    shipped: float
    attacks: tuple[Attack, ...]

    @property
    def best(self) -> Attack:
        """The attack that recovered most; the control does not count."""
        real = [attack for attack in self.attacks if attack.name != CONTROL]
        return max(real, key=lambda attack: attack.recovered)


def audit_offer(
    full: nn.Module,
    offer: Offer,
    record: Record,
    rows: Any,
    task: Task,
    *,
    device: torch.device,
    effort: Effort | None = None,
    earlier: Sequence[Offer] = (),
    base: nn.Module | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> OfferAudit:
    """Attack an offer in every way known here and say how much of the model comes back.

    Args:
        full: the owner's model, in memory.
        offer: the offer; ``earlier`` are others of the same record.
        rows: public data as rows of the task; every tenth is for validation, every tenth for test.
        base: a public model of equal shape, of which the owner's may be a fine-tune.
        say: told of every attack that is done.

    Raises:
        OffsiteError: an offer that is not in the record, or fewer than 20 rows.
    """
    if len(rows) < FEWEST:
        raise OffsiteError(
            f"An audit needs {FEWEST} rows or more, and the data gives {len(rows)}; give more text "
            "or a smaller --max-length."
        )
    effort = effort or Effort()
    fit = Subset(rows, [i for i in range(len(rows)) if i % 10 < 8])
    validation, test = (Subset(rows, range(start, len(rows), 10)) for start in (8, 9))
    views = [(rebuilt.shipped(o, e), e) for o in (offer, *earlier) for e in [entry_of(o, record)]]

    def value(model: nn.Module, data: Any) -> float:
        return float(task.evaluate(model.to(device), data).value)

    def better(model: nn.Module) -> float:
        return worth(value(model, validation), task.higher_is_better)

    def best(variants: Iterable[rebuilt.Blocks]) -> nn.Module:
        return max((rebuilt.build(full, blocks) for blocks in variants), key=better)

    starts = {name: best(variants) for name, variants in rebuildings(views, base)}
    top, bottom = value(full, test), value(starts[SHIPPED], test)
    attacks = []

    def measure(name: str, model: nn.Module, tokens: int, rate: float | None = None) -> None:
        found = value(model, test)
        share = 1.0 if top == bottom else (found - bottom) / (top - bottom)
        attacks.append(Attack(name, tokens, found, share, rate))
        say(f"{name}, {tokens:,} tokens: {task.metric} {found:.4f}, {share:.1%} recovered")

    for name, model in starts.items():
        measure(name, model, 0)
    adapter = offer.manifest.adapter
    cleverest = max(starts.values(), key=better)
    trained: list[tuple[str, nn.Module, Sequence[int] | None]] = [
        ("adapter tuned", starts[SHIPPED], adapter),
        ("all tuned", starts[SHIPPED], None),
        ("best of the untrained, all tuned", cleverest, None),
        ("gaps refilled, all tuned", starts[REFILLED], None),
        (CONTROL, random_weights(starts[SHIPPED], effort.options.seed), None),
    ]
    for name, model, part in trained:
        for tokens in effort.tokens:
            tried = [
                (fitted(model, fit, task, options, device, part), options.lr)
                for options in effort.runs(tokens, rows)
            ]
            attacker, rate = max(tried, key=lambda run: better(run[0]))
            measure(name, attacker, tokens, rate)
    return OfferAudit(task.metric, task.higher_is_better, top, bottom, tuple(attacks))


def entry_of(offer: Offer, record: Record) -> Any:
    """What the record says of an offer.

    Raises:
        OffsiteError: the record does not know it, or it was made of another model.
    """
    entry = record.find(offer.manifest.id)
    if not committed(offer.manifest.fingerprint, record.fingerprint, entry.salt):
        raise OffsiteError(
            "The offer does not commit to the model of this record; audit it with the record that "
            "was written with it."
        )
    return entry


def rebuildings(
    views: Sequence[tuple[rebuilt.Blocks, Any]], base: nn.Module | None
) -> Iterator[tuple[str, Iterable[rebuilt.Blocks]]]:
    """Name and variants of every attacker that does not train."""
    own, entry = views[0]
    change, total = rebuilt.changed, entry.total
    yield SHIPPED, [own]
    smaller = [partial(torch.mul, other=factor) for factor in rebuilt.FACTORS]
    yield "middle scaled down", (change(own, entry.adapter, rule) for rule in smaller)
    cleaner = [partial(rebuilt.shrunk, scale=scale) for scale in rebuilt.SCALES]
    yield "singular values shrunk", (change(own, entry.adapter, rule) for rule in cleaner)
    yield REFILLED, [rebuilt.filled(own, total)]
    if len(views) > 1:
        yield f"{len(views)} offers combined", rebuilt.combined(views)
    if base is not None:
        blocks = list(get_blocks(base))
        yield "public base in the gaps", [
            rebuilt.filled(own, total, blocks), rebuilt.based(own, entry.adapter, blocks)
        ]  # fmt: skip


def audit_margin(
    full: nn.Module,
    offer: Offer,
    record: Record,
    rows: Any,
    test: Any,
    task: Task,
    *,
    device: torch.device,
    effort: Effort | None = None,
    method: Method | None = None,
) -> Margin:
    """The plug-in's lead over attackers that have the same data and steps.

    The attackers are the tuned emulator and every weight tuned. Rates are chosen on ``test``,
    for the honest tuner and the attackers alike.

    Args:
        rows, test: a stand-in for the tuner's private data.
        method: what the honest tuner tunes; every adapter block by default.
    """
    effort = effort or Effort()
    start = rebuilt.build(full, rebuilt.shipped(offer, entry_of(offer, record)))
    honest, attacked = [], []
    for options in effort.runs(effort.tokens[-1], rows):
        tuned = run_tune(offer, rows, method or Full(), options=options, task=task, device=device)
        plugged = merge_delta(full, tuned.delta, record)
        honest.append(plugged)
        attacked += [tuned.model, fitted(start, rows, task, options, device)]
    sides = [
        max(worth(task.evaluate(m.to(device), test).value, task.higher_is_better) for m in side)
        for side in (honest, attacked)
    ]
    sign = 1 if task.higher_is_better else -1
    return Margin(sign * sides[0], sign * sides[1], sides[0] - sides[1])
