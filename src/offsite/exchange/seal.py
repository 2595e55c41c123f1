"""The seal of a record: whoever lacks this party's secret cannot change where a delta will go.

Each offer's entry has a link, the HMAC-SHA256 (RFC 2104) of the link before it and the entry; the
first link is that of what the offers have in common. A change to an entry, or an entry that is
taken out before others, breaks every link from there on. The secret stands in ``record.key`` in
this party's key folder (:func:`offsite.signing.keys.key_folder`), not beside the record. A record
of an older release has no seal; it gets one when it is next written. Whoever can write the record
and knows the older form can therefore still pass a forged one off as old.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import locked, shown, write_file
from offsite.signing.keys import key_folder

SECRET = "record.key"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a record with its seal; without one where no secret can be kept."""
    if (secret := _secret(make=True)) is None:
        return dict(record)
    return {**record, "seal": {"key": _name(secret), "links": links(record, secret)}}


def check_seal(data: Any, path: str | Path) -> Any:
    """The JSON of a record without its seal, which must hold if there is one.

    Raises:
        OffsiteError: the record was changed since it was written, or its secret is not here.
    """
    if not isinstance(data, dict):
        return data
    if "seal" not in data:
        if '"expires"' in json.dumps(data) and _secret(make=False) is not None:
            raise OffsiteError(f"The record '{path}' has lost its seal; restore it from a copy.")
        return data
    record, seal = {key: value for key, value in data.items() if key != "seal"}, data["seal"]
    named = seal.get("key") if isinstance(seal, dict) else None
    secret = _secret(make=False)
    if secret is None or named != _name(secret):
        raise OffsiteError(
            f"The record '{path}' was sealed with a secret that is not here; copy '{SECRET}' from "
            f"the machine that made the offer to '{key_folder()}', or set OFFSITE_HOME."
        )
    found, known = links(record, secret), seal.get("links")
    if not isinstance(known, list) or len(known) != len(found):
        raise OffsiteError(f"The record '{path}' was changed by hand; restore it from a copy.")
    for index, (one, other) in enumerate(zip(found, known, strict=True)):
        if not isinstance(other, str) or not hmac.compare_digest(
            one.encode(), other.encode("utf-8", "replace")
        ):
            offers = record.get("offers")
            entry = offers[index - 1] if index and isinstance(offers, list) else None
            offer = entry.get("offer") if isinstance(entry, dict) else None
            which = f"entry of the offer {shown(offer)[:8]}..." if index else "head"
            raise OffsiteError(
                f"The {which} in the record '{path}' was changed by hand; restore it from a copy, "
                "because a delta could go into the wrong blocks."
            )
    return record


def links(record: Mapping[str, Any], secret: bytes) -> list[str]:
    """The chain of a record: one link for its head, then one for each offer in order."""
    head = {key: value for key, value in record.items() if key != "offers"}
    offers = record.get("offers")
    chain, last = [], ""
    for part in [head, *(offers if isinstance(offers, list) else [offers])]:
        text = last + json.dumps(part, sort_keys=True, separators=(",", ":"))
        last = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
        chain.append(last)
    return chain


def _name(secret: bytes) -> str:
    return hashlib.sha256(b"offsite record key" + secret).hexdigest()[:16]


def _secret(*, make: bool) -> bytes | None:
    """This party's secret; made on first use, None where that is not possible."""
    path = key_folder() / SECRET
    try:
        if not path.is_file():
            if not make:
                return None
            key_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(path):
                if not path.is_file():
                    write_file(path, secrets.token_hex(32) + "\n", private=True)
        return bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError, OffsiteError):
        return None
