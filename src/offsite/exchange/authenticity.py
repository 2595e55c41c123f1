"""Check who sent an offer or a delta, and that it is unchanged.

A folder is signed as a whole, its manifest included, in the file ``model.sig``. The signature also
names sender, recipient, offer, round and expiry. A delta names the digest of the manifest of the
offer it was tuned on, so that an offer changed on the way is found out when its delta comes back.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from offsite.codec import validate
from offsite.errors import OffsiteError
from offsite.exchange.file_set import MANIFEST, README
from offsite.exchange.manifest import DeltaManifest, Manifest, OfferManifest, read_either
from offsite.files import open_regular, parse_json, write_file
from offsite.signing.keys import (
    OWN,
    Peer,
    fingerprint,
    key_folder,
    known_keys,
    own_key,
    peer,
    peers,
)
from offsite.signing.oms import MAX_SIGNATURE, SIGNATURE, Signed, UnknownSigner, sign, verify

SENT = "sent"  # folder of notes: to whom an offer was addressed
MAX_MANIFEST = 16 * 1024 * 1024


def digest(offer: OfferManifest) -> str | None:
    """What a delta names its offer's manifest by; a model card may be added to it later.

    Returns:
        SHA-256 of the manifest in canonical JSON; None for an offer that was never written.
    """
    if not offer.files:
        return None
    data = offer.model_dump(mode="json", exclude_unset=True)
    data["files"] = {name: entry for name, entry in data["files"].items() if name != README}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sign_folder(folder: str | Path, recipient: str | None = None) -> Path:
    """Sign an offer or a delta with this party's key.

    Args:
        folder: what to sign; a signature that is there already is replaced.
        recipient: the name of a pinned peer that alone may use it; None for anybody.

    Returns:
        The path of the signature.

    Raises:
        OffsiteError: no key, no such peer, or a folder that was changed.
    """
    folder, key = Path(folder), own_key()
    manifest = read_either(folder)
    to = peer(recipient).fingerprint if recipient else None
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    hashes[MANIFEST] = hashlib.sha256(_manifest_bytes(folder)).hexdigest()
    about = _about(manifest) | {
        "sender": fingerprint(key.public_key()),
        "recipient": to,
        "nonce": secrets.token_hex(16),
    }
    if to is not None and isinstance(manifest, OfferManifest):
        write_file(key_folder() / SENT / manifest.id, to + "\n", private=True)
    text = sign(f"{manifest.kind}-{manifest.id[:8]}", hashes, about, key)
    write_file(folder / SIGNATURE, text, beside=folder.absolute())
    return folder / SIGNATURE


def check_signature(
    folder: str | Path, manifest: OfferManifest | DeltaManifest, require: bool | None = None
) -> Peer | None:
    """Check who signed a folder, and that it is the folder they signed.

    Args:
        folder: an offer or a delta.
        manifest: its manifest as it was read and checked.
        require: whether a signature of a known peer is needed; None for "once a peer is pinned".

    Returns:
        The peer that signed it; None for a folder without a signature that could be checked.

    Raises:
        OffsiteError: a signature that is missing, unknown, broken, or for another folder or reader.
    """
    folder = Path(folder)
    needed = bool(peers()) if require is None else require
    if not (folder / SIGNATURE).is_file():
        if not needed:
            return None
        raise OffsiteError(
            f"'{folder}' is not signed; ask its sender to sign it (offsite sign), or accept it "
            "unsigned with --no-require-signature of tune or plug."
        )
    everyone = {one.fingerprint: one for one in known_keys()}
    with open_regular(folder / SIGNATURE) as file:
        data = file.read(MAX_SIGNATURE + 1)
    try:
        keys = {print_: one.key for print_, one in everyone.items()}
        signed = verify(data, keys, folder / SIGNATURE)
    except UnknownSigner:
        if needed:
            raise
        return None
    _compare(folder, manifest, signed)
    return everyone[signed.sender]


def _compare(folder: Path, manifest: OfferManifest | DeltaManifest, signed: Signed) -> None:
    """Hold a folder to a good signature: its files, then what was agreed on."""
    data = _manifest_bytes(folder)
    path = folder / MANIFEST
    same: Any = validate(type(manifest), parse_json(data, path), path)
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()}
    hashes[MANIFEST] = hashlib.sha256(data).hexdigest()
    about = signed.about
    said = {key: about[key] for key in _about(manifest) if key in about}
    if same != manifest or hashes != dict(signed.hashes) or said != (about and _about(manifest)):
        raise OffsiteError(f"'{folder}' was changed after it was signed; ask for a fresh copy.")
    me = [one.fingerprint for one in known_keys() if one.name == OWN]
    to = about.get("recipient")
    if to is not None and to not in me and signed.sender not in me:
        raise OffsiteError(
            f"'{folder}' was signed for another recipient; ask its sender to sign it for you."
        )
    sent = key_folder() / SENT / manifest.parent if isinstance(manifest, DeltaManifest) else None
    if sent is not None and sent.is_file() and sent.read_text("utf-8").strip() != signed.sender:
        raise OffsiteError(
            f"The offer that '{folder}' answers was signed for another peer than the sender of "
            "this delta; ask that peer for the delta."
        )


def _about(manifest: Manifest) -> dict[str, Any]:
    """What a signature repeats of a manifest."""
    offer = isinstance(manifest, OfferManifest)
    expires: datetime | None = getattr(manifest, "expires", None)
    return {
        "kind": "offer" if offer else "delta",
        "id": manifest.id,
        "offer": manifest.id if offer else getattr(manifest, "parent", None),
        "round": getattr(manifest, "round", 1),
        "expires": expires.isoformat() if expires is not None else None,
    }


def _manifest_bytes(folder: Path) -> bytes:
    with open_regular(folder / MANIFEST) as file:
        return file.read(MAX_MANIFEST + 1)
