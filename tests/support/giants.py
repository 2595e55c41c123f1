"""Configurations that ask for a giant model: an integer of a valid one is set to a giant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.exchange.offer import Offer
from tests.support.forge import dump, seal

GIANT = 2**31 - 1
MANY = 2000  # blocks, layers or experts that a configuration may name at most, about


def integers(part: Mapping[str, Any], above: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Where the integers of a configuration stand, those of its parts too."""
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from integers(value, (*above, key))
        elif isinstance(value, int) and not isinstance(value, bool) and not key.endswith("_id"):
            yield (*above, key)


def forged(content: Any, place: Sequence[str]) -> Any:
    """A configuration with a giant at one place: as large as the first check lets through."""
    changed = json.loads(json.dumps(content))
    part = changed
    for key in place[:-1]:
        part = part[key]
    counted = any(word in place[-1] for word in ("layer", "depth", "expert", "block", "label"))
    part[place[-1]] = MANY if counted and "size" not in place[-1] else GIANT
    return changed


def outcome(folder: Path, content: Any) -> str:
    """What becomes of an offer with another configuration: ``read``, or the refusal."""
    dump(folder / "config.json", content)
    seal(folder)
    try:
        Offer.load(folder)
    except OffsiteError as error:
        return str(error)
    return "read"
