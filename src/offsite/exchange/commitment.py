"""A commitment: it ties an offer to the full model and does not identify that model.

The fingerprint is a hash of public weights for a public model, so it would name the model, and it
would tell an attacker when a reconstruction is exact. An offer has a salted hash of it instead.
"""

from __future__ import annotations

import hmac
import secrets


def new_salt() -> str:
    """32 random bytes, in hexadecimal; they stay in the owner's record."""
    return secrets.token_hex(32)


def commit(fingerprint: str, salt: str) -> str:
    """HMAC-SHA256 of a model's fingerprint under a salt, all in hexadecimal."""
    return hmac.new(bytes.fromhex(salt), bytes.fromhex(fingerprint), "sha256").hexdigest()


def commits_to(commitment: str, fingerprint: str, salt: str | None) -> bool:
    """Whether an offer was made of a model; offers without a salt hold the fingerprint itself."""
    return hmac.compare_digest(
        commitment, fingerprint if salt is None else commit(fingerprint, salt)
    )
