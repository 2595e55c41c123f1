"""Emulators kept on disk, so that many deltas are tuned on one.

Each has a folder of its own, named by all that it depends on: plans that differ only in their
private data share it. A folder may be removed; its emulator is then made anew when it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offsite.compress.recipe import Recipe
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.exchange.side import sides_of
from offsite.files import locked, read_json, write_file
from offsite.lab.plan import Plan
from offsite.training.identity import Identity

OFFER = Path("made") / "offer"  # in an emulator's folder, with its record and cost beside it
PRIVATE = ("task", "data", "eval_data")  # parts of a plan's identity that no emulator depends on


@dataclass(frozen=True)
class Emulator:
    """An offer as its tuner has it, the record that its owner keeps, and what it cost to make."""

    offer: Offer
    record: Record
    cost: Mapping[str, float]


def emulator_name(known_by: Identity, plan: Plan, recipe: Recipe, seed: int, model: Any) -> str:
    """The hash of everything an emulator depends on.

    Args:
        known_by: what every cell of the plan depends on.
        model: the full model, perhaps with side tensors.
    """
    sides = {name: group.hash for name, group in sides_of(model).items()}
    public = Identity({k: v for k, v in known_by.parts.items() if k not in PRIVATE})
    return (public | Identity.of(**recipe.key(seed), reach=plan.reach, sides=sides)).digest


def worth_keeping(recipe: Recipe) -> bool:
    """Whether a recipe looks at data; any other is applied again more quickly than read."""
    return any(step.needs.data for step in recipe.steps)


def load(folder: Path) -> Emulator | None:
    """The emulator in a folder; None if there is none.

    Raises:
        OffsiteError: it was changed, or its record was sealed on another machine.
    """
    offer = folder / OFFER
    if not offer.is_dir():
        return None
    made = Offer.load(offer, require_signature=False)
    record = Record.load(offer.with_name("offer.record.json"))
    entry = record.find(made.manifest.id)  # a kill may have left an entry without an offer
    one = record.model_copy(update={"offers": (entry,)})
    return Emulator(made, one, read_json(offer.with_name("cost.json")))


def save(made: Emulator, folder: Path) -> None:
    """Keep an emulator, without its tokenizer: its offer appears last, when all else is written."""
    offer = folder / OFFER
    write_file(offer.with_name("cost.json"), json.dumps(dict(made.cost)) + "\n")
    replace(made.offer, processor=None).save(offer)


def kept(folder: Path, make: Callable[[], Emulator]) -> Emulator:
    """The emulator that a folder keeps, made and kept on first use."""
    with locked(folder / "made"):  # other processes wait for it
        found = load(folder)
        if found is None:
            save(found := make(), folder)
        return found


def sent(made: Emulator, folder: Path) -> Emulator:
    """The emulator as its tuner has it when the offer was written to ``folder``."""
    made.offer.save(folder)  # with its record beside it
    return replace(made, offer=Offer.load(folder, require_signature=False))
