"""Commands about keys: make one, pin a peer's, sign, verify, encrypt and decrypt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.output import emit

Folder = Annotated[Path, typer.Argument(help="Folder of an offer or a delta.")]


def keygen(
    age: Annotated[
        bool, typer.Option("--age", help="Make an age identity too, to receive encrypted folders.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Make the key that this party signs with."""
    from offsite.signing.age import make_identity
    from offsite.signing.keys import fingerprint, make_key, read_public

    public = make_key()
    print_ = fingerprint(read_public(public))
    lines = [f"{public}  send this file to your peers", f"  fingerprint  {print_}"]
    result = {"public": str(public), "fingerprint": print_}
    if age:
        result["age"] = str(make_identity())
        lines.append(f"{result['age']}  send this too, to be sent encrypted folders")
    emit(result, json, lines)


def peer(
    name: Annotated[str, typer.Argument(help="What you call the peer.")],
    key: Annotated[Path, typer.Argument(help="The public key they sent you (key.pub).")],
    json: o.Json = False,
) -> None:
    """Pin a peer's public key; from then on tune and plug require a known signature."""
    from offsite.signing.keys import pin

    pinned = pin(name, key)
    emit(
        {"peer": pinned.name, "fingerprint": pinned.fingerprint},
        json,
        [f"pinned {pinned.name}", f"  fingerprint  {pinned.fingerprint}", "  compare it by phone"],
    )


def sign(
    folder: Folder,
    to: Annotated[str | None, typer.Option(help="The only peer that may use it.")] = None,
    json: o.Json = False,
) -> None:
    """Sign an offer or a delta with this party's key."""
    from offsite.exchange.authenticity import sign_folder

    path = sign_folder(folder, to)
    emit({"signature": str(path), "to": to}, json, [f"{path}  written"])


def verify(folder: Folder, json: o.Json = False) -> None:
    """Check who signed an offer or a delta, and that nothing in it was changed."""
    from offsite.exchange.authenticity import check_signature
    from offsite.exchange.manifest import read_either

    manifest = read_either(folder)
    signer = check_signature(folder, manifest, require=True)
    assert signer is not None
    emit(
        {"kind": manifest.kind, "id": manifest.id, "signer": signer.name},
        json,
        [f"{folder}: {manifest.kind} {manifest.id[:8]}, signed by {signer.name}"],
    )


def encrypt(
    folder: Folder,
    to: Annotated[str, typer.Option(help="The recipient (age1...), or a file that holds it.")],
    out: Annotated[Path, typer.Option(help="File to write; must not exist.")],
    json: o.Json = False,
) -> None:
    """Encrypt an offer or a delta to one recipient."""
    from offsite.exchange.manifest import read_either
    from offsite.signing.age import encrypt_folder

    read_either(folder)
    encrypt_folder(folder, to, out)
    emit({"out": str(out)}, json, [f"{out}  written"])


def decrypt(
    source: Annotated[Path, typer.Argument(help="A file that 'offsite encrypt' wrote.")],
    out: Annotated[Path, typer.Option(help="Folder; must not exist.")],
    json: o.Json = False,
) -> None:
    """Decrypt an offer or a delta that was encrypted to this party, and check it."""
    from offsite.exchange.manifest import read_either
    from offsite.signing.age import decrypt_folder

    decrypt_folder(source, out, read_either)
    manifest = read_either(out)
    emit(
        {"folder": str(out), "kind": manifest.kind, "id": manifest.id},
        json,
        [f"{out}: {manifest.kind} {manifest.id[:8]}, checked"],
    )
