"""Signatures in the layout of OpenSSF model signing (OMS) 1.0.

A signature is a Sigstore bundle around a DSSE envelope around an in-toto statement. The statement
lists the SHA-256 of every file of a folder; the ``model-signing`` package verifies it, and the ones
it makes are read here. The rest of what the two parties agree on is in the predicate under
``offsite``, which other verifiers pass over, as the layout says they do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offsite.errors import OffsiteError
from offsite.files import parse_json
from offsite.signing.keys import fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

SIGNATURE = "model.sig"
MAX_SIGNATURE = 4 * 1024 * 1024
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"


class UnknownSigner(OffsiteError):
    """A signature of a key that was never pinned."""


@dataclass(frozen=True)
class Signed:
    """What a verified signature says.

    Attributes:
        sender: fingerprint of the key that made it.
        hashes: SHA-256 of every signed file, by name.
        about: the entries under ``offsite``; empty in a signature of another tool.
    """

    sender: str
    hashes: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)


def sign(
    name: str, hashes: Mapping[str, str], about: Mapping[str, Any], key: EllipticCurvePrivateKey
) -> str:
    """The text of a signature over files by their hashes.

    Args:
        name: what the statement calls its subject.
        hashes: SHA-256 of every file, by name.
        about: further things to sign, as JSON.
        key: the private key, on the curve P-256.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    resources = [
        {"name": file, "algorithm": "sha256", "digest": hashes[file]} for file in sorted(hashes)
    ]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root(resources)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": resources,
            "offsite": dict(about),
        },
    }
    payload = json.dumps(statement, sort_keys=True).encode()
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": fingerprint(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [
                {
                    "sig": base64.b64encode(key.sign(pae(payload), ECDSA(SHA256()))).decode(),
                    "keyid": "",
                }
            ],
        },
    }
    return json.dumps(bundle, indent=1) + "\n"


def verify(data: bytes, keys: Mapping[str, EllipticCurvePublicKey], path: Path) -> Signed:
    """Check a signature and return what it says; nothing in it is believed before that.

    Args:
        data: the bytes of the signature.
        keys: the public keys that may have made it, by fingerprint.
        path: its place, for messages.

    Raises:
        OffsiteError: not such a signature, of a key that is not known, or one that does not hold.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    if len(data) > MAX_SIGNATURE:
        raise OffsiteError(
            f"The signature '{path}' is larger than {MAX_SIGNATURE} bytes; ask for a fresh copy."
        )
    try:
        bundle = parse_json(data, path)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        envelope = bundle["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        raw = base64.b64decode(signature["sig"], validate=True)
        fits = (bundle["mediaType"], envelope["payloadType"]) == (BUNDLE, PAYLOAD)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        if isinstance(error, OffsiteError):
            raise
        raise OffsiteError(f"'{path}' is not a signature made with a key; ask for one.") from error
    if not fits or not isinstance(hint, str):
        raise OffsiteError(f"'{path}' is not a signature made with a key; ask for one.")
    if hint not in keys:
        raise UnknownSigner(
            f"'{path}' was signed with a key that is not pinned here; if you know whose it is, pin "
            "it with: offsite peer NAME KEY.pub."
        )
    try:
        keys[hint].verify(raw, pae(payload), ECDSA(SHA256()))
    except InvalidSignature as error:
        raise OffsiteError(
            f"The signature '{path}' is not valid for these files; the folder was changed, so "
            "ask for a fresh copy."
        ) from error
    return _read(parse_json(payload, path), hint, path)


def _read(statement: Any, sender: str, path: Path) -> Signed:
    """What a statement lists, once its signature was found good."""
    try:
        predicate = statement["predicate"]
        resources = predicate["resources"]
        hashes = {one["name"]: one["digest"] for one in resources}
        about = predicate.get("offsite", {})
        (subject,) = statement["subject"]
        good = (
            (statement["_type"], statement["predicateType"]) == (STATEMENT, PREDICATE)
            and predicate["serialization"]["method"] == "files"
            and all(one["algorithm"] == "sha256" for one in resources)
            and len(hashes) == len(resources)
            and subject["digest"]["sha256"] == root(resources)
            and isinstance(about, dict)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OffsiteError(
            f"The signature '{path}' does not list a folder's files; ask for a fresh copy."
        ) from error
    if not good:
        raise OffsiteError(
            f"The signature '{path}' does not list files by SHA-256; ask for a fresh copy."
        )
    return Signed(sender, hashes, about)


def root(resources: list[dict[str, str]]) -> str:
    """SHA-256 over the digests of all files, in the order of their names."""
    return hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()


def pae(payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding of DSSE 1.0."""
    return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload
