"""The owner's audit: how much of the model do attackers recover from an offer?

Every attacker has the offer and public text, and is tried at several learning rates and numbers of
tokens. Rates and variants are chosen on validation rows; what is reported is measured on test rows.
The *share recovered* is the part that an attacker closes of the distance in the metric from the
offer as shipped to the full model, tuned on as many tokens of the same text. So learning the text
does not count as recovering the model. A model of the same shape trained from random weights shows
how much the text alone gives. An audit gives a lower bound: a better attacker recovers more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from offsite.audit import rebuilt
from offsite.audit.recovered import CONTROL, Attack, OfferAudit, Scale
from offsite.audit.training import Bench, Effort, random_weights, trained_copy, worth
from offsite.deltas.specification.full import Full
from offsite.errors import OffsiteError
from offsite.exchange.commitment import commits_to
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.lab.baselines import trainable
from offsite.model.blocks import get_blocks
from offsite.owner.plugging import merge_delta
from offsite.tasks.task import Task
from offsite.tuner.tuning import run_tune

SHIPPED = "as shipped"
REFILLED = "gaps refilled with the nearest blocks"
ADAPTER = "adapter tuned"


@dataclass(frozen=True)
class Margin:
    """The plug-in against the best attacker on equal data and steps.

    ``margin`` is the plug-in's lead in the metric, larger is better for the owner.
    """

    plug_in: float
    attacker: float
    margin: float


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
    bench = Bench.of(rows, task, device, effort or Effort())
    views = [(rebuilt.shipped(o, e), e) for o in (offer, *earlier) for e in [entry_of(o, record)]]
    starts = {
        name: max((rebuilt.build(full, blocks) for blocks in variants), key=bench.better)
        for name, variants in rebuildings(views, base)
    }
    control = random_weights(starts[SHIPPED], bench.effort.options.seed)
    top, bottom, least = (bench.value(model) for model in (full, starts[SHIPPED], control))
    scale = Scale(top, bottom, least, task.higher_is_better)
    attacks = []

    def measure(name: str, model: nn.Module, tokens: int, top: float, rate: float | None) -> None:
        found = bench.value(model)
        attacks.append(Attack(name, tokens, found, top, scale.recovered(found, top), rate))
        say(f"{name}, {tokens:,} tokens: {task.metric} {found:.4f}, "
            f"{attacks[-1].recovered:.1%} recovered")  # fmt: skip

    for name, model in starts.items():
        measure(name, model, 0, scale.full, None)
    trained = trainings(starts, max(starts.values(), key=bench.better), control)
    runs = (1 + len(trained)) * len(bench.effort.rates)
    say(f"{runs} training runs for each of {len(bench.effort.tokens)} numbers of tokens, "
        f"{runs * sum(bench.effort.tokens):,} tokens in all")  # fmt: skip
    for tokens in bench.effort.tokens:
        top = scale.better(bench.value(bench.tuned(trainable(full), tokens)[0]), scale.full)
        say(f"full model tuned, {tokens:,} tokens: {task.metric} {top:.4f}")
        for name, start in trained.items():
            part = offer.manifest.adapter if name == ADAPTER else None
            attacker, rate = bench.tuned(start, tokens, part)
            measure(name, attacker, tokens, top, rate)
    return OfferAudit(task.metric, task.higher_is_better, scale.full, scale.shipped, tuple(attacks))


def trainings(
    starts: Mapping[str, nn.Module], cleverest: nn.Module, control: nn.Module
) -> dict[str, nn.Module]:
    """Name and start of every attacker that trains; none starts where another one does."""
    found = {ADAPTER: starts[SHIPPED], "all tuned": starts[SHIPPED]}
    if cleverest is not starts[SHIPPED] and cleverest is not starts[REFILLED]:
        found["best of the untrained, all tuned"] = cleverest
    return {**found, "gaps refilled, all tuned": starts[REFILLED], CONTROL: control}


def entry_of(offer: Offer, record: Record) -> Any:
    """What the record says of an offer.

    Raises:
        OffsiteError: the record does not know it, or it was made of another model.
    """
    entry = record.find(offer.manifest.id)
    if not commits_to(offer.manifest.fingerprint, record.fingerprint, entry.salt):
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
) -> Margin:
    """The plug-in's lead over attackers that have the same data and steps.

    The honest tuner tunes every parameter of the adapter blocks. The attackers use the tuned
    emulator, or tune every weight. Learning rates are chosen on ``test`` for all of them.

    Args:
        rows, test: a stand-in for the tuner's private data.
    """
    effort = effort or Effort()
    start = rebuilt.build(full, rebuilt.shipped(offer, entry_of(offer, record)))
    honest, attacked = [], []
    for options in effort.runs(effort.tokens[-1], rows):
        tuned = run_tune(offer, rows, Full(), options=options, task=task, device=device)
        plugged = merge_delta(full, tuned.delta, record)
        honest.append(plugged)
        attacked += [tuned.model, trained_copy(start, rows, task, options, device)]
    sides = [
        max(worth(task.evaluate(m.to(device), test).value, task.higher_is_better) for m in side)
        for side in (honest, attacked)
    ]
    sign = 1 if task.higher_is_better else -1
    return Margin(sign * sides[0], sign * sides[1], sides[0] - sides[1])
