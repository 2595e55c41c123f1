"""An old copy of a record is noticed: this party remembers what each record last held.

The seal of a record (:mod:`offsite.exchange.seal`) shows a change made by hand. An old copy of the
whole file has a good seal too, and its ledger does not know the deltas that were accepted since. So
the offers of a record and the deltas that each accepted are noted in ``records`` in this party's
key folder (:func:`offsite.signing.keys.key_folder`), under the id of the record's first offer. A
record that lacks any of them is older than one that was seen, and it is not used to plug or to add
an offer.

The note is written after the record. A kill between the two leaves a note that is one step behind,
until the record is written again. Whoever can write both the record and the folder of keys can roll
both back, and a machine that never wrote the record has no note of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from offsite.errors import OffsiteError
from offsite.files import locked, read_json, write_file
from offsite.signing.keys import key_folder

NOTES = "records"
State = Mapping[str, frozenset[str]]  # ids of the deltas that each offer of a record accepted


def remember(state: State) -> None:
    """Note what a record holds, and keep what was noted of it before.

    Where the folder of keys cannot be written, nothing is noted, as there is no seal there either.
    """
    if not state:
        return
    path = _note(state)
    with suppress(OffsiteError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path):
            seen = _seen(path)
            none: frozenset[str] = frozenset()
            union = {o: sorted(seen.get(o, none) | state.get(o, none)) for o in {**seen, **state}}
            write_file(path, json.dumps(union, indent=1) + "\n", private=True)


def check_newest(state: State, record: str | Path) -> None:
    """Refuse a record that lacks an offer or an accepted delta that was noted of it.

    Raises:
        OffsiteError: the record is an old copy, or the note is damaged.
    """
    if not state:
        return
    path = _note(state)
    for offer, deltas in _seen(path).items():
        if offer in state and deltas <= state[offer]:
            continue
        lost = min(deltas - state.get(offer, frozenset()), default=None)
        what = f"the offer {offer[:8]}..." if lost is None else f"the delta {lost[:8]}..."
        raise OffsiteError(
            f"The record '{record}' is an old copy: {what} was entered in it later, so a delta "
            "could be plugged twice; put the newest copy back, or, if it is lost, remove "
            f"'{path}' to go on with this one."
        )


def _note(state: State) -> Path:
    return key_folder() / NOTES / f"{next(iter(state))}.json"


def _seen(path: Path) -> dict[str, frozenset[str]]:
    if not path.is_file():
        return {}
    content = read_json(path)
    if isinstance(content, dict) and all(isinstance(ids, list) for ids in content.values()):
        return {offer: frozenset(map(str, ids)) for offer, ids in content.items()}
    raise OffsiteError(f"'{path}' is damaged; restore it from a backup or remove it.")
