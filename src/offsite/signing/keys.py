"""The keys of this party and of the peers it knows, in a folder of the user.

The folder is ``$OFFSITE_HOME``, or ``offsite`` in the user's configuration folder. It holds
``key.pem`` (ECDSA P-256, private), ``key.pub``, and ``peers/NAME.pub`` for every peer that was
pinned. A key is known by its fingerprint, the SHA-256 of its public PEM.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offsite.errors import MissingExtraError, OffsiteError
from offsite.files import shown, write_file, writing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

PRIVATE, PUBLIC, PEERS = "key.pem", "key.pub", "peers"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
OWN = "yourself"  # the name of this party's own key
MAX_KEY = 4096


@dataclass(frozen=True)
class Peer:
    """Somebody whose public key was pinned under a name.

    Attributes:
        name: what this party calls them.
        key: their public key.
        fingerprint: SHA-256 of its PEM, in hexadecimal.
    """

    name: str
    key: EllipticCurvePublicKey
    fingerprint: str


def key_folder() -> Path:
    """The folder of keys and peers; it may not exist yet."""
    if given := os.environ.get("OFFSITE_HOME"):
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "offsite"


def make_key() -> Path:
    """Make this party's key and return the path of its public half.

    Raises:
        OffsiteError: there is a key already; it is never replaced.
    """
    ec, serialization = _cryptography()
    folder = key_folder()
    if (folder / PRIVATE).exists():
        raise OffsiteError(
            f"'{folder}' already holds a key; send '{folder / PUBLIC}' to your peers, or set "
            "OFFSITE_HOME to another folder for a second key."
        )
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(folder / PUBLIC, pem(key.public_key()).decode())
    write_file(folder / PRIVATE, text.decode(), private=True)
    return folder / PUBLIC


def own_key() -> EllipticCurvePrivateKey:
    """This party's private key.

    Raises:
        OffsiteError: there is none, or the file holds something else.
    """
    ec, serialization = _cryptography()
    path = key_folder() / PRIVATE
    if not path.is_file():
        raise OffsiteError("There is no key to sign with; make one with: offsite keygen.")
    try:
        key = serialization.load_pem_private_key(path.read_bytes()[:MAX_KEY], None)
    except (ValueError, TypeError) as error:
        raise OffsiteError(
            f"'{path}' does not hold a private key without a password; use one that 'offsite "
            "keygen' made."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise OffsiteError(
            f"The key in '{path}' is not an ECDSA key on the curve P-256; use one that 'offsite "
            "keygen' made."
        )
    return cast("EllipticCurvePrivateKey", key)


def read_public(path: Path) -> EllipticCurvePublicKey:
    """The public key in a PEM file.

    Raises:
        OffsiteError: no such file, or no ECDSA P-256 key in it.
    """
    ec, serialization = _cryptography()
    try:
        with open(path, "rb") as file:
            key = serialization.load_pem_public_key(file.read(MAX_KEY))
    except OSError as error:
        raise OffsiteError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise OffsiteError(
            f"'{path}' does not hold a public key in PEM form; ask your peer for their key.pub."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise OffsiteError(
            f"The key in '{path}' is not an ECDSA key on the curve P-256; use one that 'offsite "
            "keygen' made."
        )
    return cast("EllipticCurvePublicKey", key)


def pin(name: str, path: Path) -> Peer:
    """Remember a peer's public key; from then on a signature is required.

    Raises:
        OffsiteError: an unusable name or key, or another key under that name.
    """
    if not NAME.fullmatch(name) or name == OWN:
        raise OffsiteError(
            f"'{shown(name)}' cannot name a peer; use up to 64 letters, digits, '.', '_' and '-', "
            f"and another name than '{OWN}'."
        )
    key = read_public(path)
    target = key_folder() / PEERS / f"{name}.pub"
    if target.exists() and read_public(target) != key:
        raise OffsiteError(
            f"Another key is pinned as '{name}'; remove '{target}' first if the peer has changed "
            "keys and you have checked that with them."
        )
    with writing(key_folder()):
        key_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file(target, pem(key).decode())
    return Peer(name, key, fingerprint(key))


def peers() -> tuple[Peer, ...]:
    """Every peer that was pinned, by name."""
    folder = key_folder() / PEERS
    paths = sorted(folder.glob("*.pub")) if folder.is_dir() else []
    return tuple(Peer(p.stem, key, fingerprint(key)) for p in paths for key in [read_public(p)])


def known_keys() -> tuple[Peer, ...]:
    """The pinned peers, and this party itself where it has a key."""
    mine = key_folder() / PUBLIC
    if not mine.is_file():
        return peers()
    key = read_public(mine)
    return (*peers(), Peer(OWN, key, fingerprint(key)))


def peer(name: str) -> Peer:
    """The peer pinned under a name.

    Raises:
        OffsiteError: there is none.
    """
    found = {one.name: one for one in known_keys()}
    if name not in found:
        raise OffsiteError(
            f"No peer is pinned as '{name[:64]}'; pin the public key they sent you with: offsite "
            "peer NAME KEY.pub."
        )
    return found[name]


def pem(key: EllipticCurvePublicKey) -> bytes:
    """A public key as PEM, which its fingerprint is taken of."""
    _, serialization = _cryptography()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key's PEM, as model-signing takes it."""
    return hashlib.sha256(pem(key)).hexdigest()


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign", "Signing") from error
    return ec, serialization
