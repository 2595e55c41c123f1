"""Encryption of an offer or a delta to one recipient with age (https://age-encryption.org/v1).

What is encrypted is a tar archive of the folder's files. It is opened file by file into a fresh
folder, which gets its name once its manifest was checked; an archive with anything but regular
files under flat names is refused.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offsite.errors import MissingExtraError, OffsiteError
from offsite.files import (
    FILE_NAME,
    MAX_FILES,
    check_free,
    folder_files,
    new_file,
    new_folder,
    write_file,
)
from offsite.signing.keys import key_folder

IDENTITY, RECIPIENT = "age.key", "age.pub"


def make_identity() -> Path:
    """Make this party's age identity; returns the file with the recipient to send to peers.

    Raises:
        OffsiteError: there is one already.
    """
    age, folder = _age(), key_folder()
    if (folder / IDENTITY).exists():
        raise OffsiteError(
            f"'{folder}' already holds an age identity; send '{folder / RECIPIENT}' to your peers."
        )
    identity = age.x25519.Identity.generate()
    write_file(folder / RECIPIENT, f"{identity.to_public()}\n")
    write_file(folder / IDENTITY, f"{identity}\n", private=True)
    return folder / RECIPIENT


def encrypt_folder(folder: str | Path, recipient: str, out: str | Path) -> None:
    """Encrypt a folder's files to a recipient.

    Args:
        folder: a flat folder.
        recipient: an age recipient (``age1...``), or a file that holds one.
        out: the file to write; must not exist.

    Raises:
        OffsiteError: not a recipient, or a file that cannot be written.
    """
    age, folder, out = _age(), Path(folder), Path(out)
    check_free(out)
    text = Path(recipient).read_text("utf-8") if Path(recipient).is_file() else recipient
    try:
        to = age.x25519.Recipient.from_str(text.strip())
    except age.RecipientError as error:
        raise OffsiteError(
            f"'{recipient[:80]}' is not an age recipient; give what the other party's 'offsite "
            "keygen --age' wrote, which begins with age1."
        ) from error
    with new_file(out) as file, tempfile.TemporaryFile() as plain:
        with tarfile.open(fileobj=plain, mode="w") as archive:
            for name, size in folder_files(folder).items():
                entry = tarfile.TarInfo(name)
                entry.size = size
                with open(folder / name, "rb") as content:
                    archive.addfile(entry, content)
        plain.seek(0)
        age.encrypt_io(plain, file, [to])


def decrypt_folder(source: str | Path, out: str | Path, check: Callable[[Path], Any]) -> None:
    """Decrypt what :func:`encrypt_folder` wrote; the folder appears checked, or not at all.

    Args:
        source: the encrypted file.
        out: folder to write; must not exist.
        check: raises for a folder that is neither an offer nor a delta.

    Raises:
        OffsiteError: not for this party, damaged, or an archive with anything but flat files.
    """
    age, source = _age(), Path(source)
    key = key_folder() / IDENTITY
    if not key.is_file():
        raise OffsiteError("There is no age identity here; make one with: offsite keygen --age.")
    if not source.is_file():
        raise OffsiteError(f"There is no file '{source}'; check the path.")
    identity = age.x25519.Identity.from_str(key.read_text("utf-8").strip())
    with new_folder(out) as partial, tempfile.TemporaryFile() as plain:
        try:
            with open(source, "rb") as file:
                age.decrypt_io(file, plain, [identity])
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                unpack(archive, partial)
        except OffsiteError:
            raise
        except age.DecryptError as error:
            raise OffsiteError(
                f"'{source}' cannot be decrypted; it was encrypted to another recipient or was "
                "damaged, so ask for it again."
            ) from error
        except (tarfile.TarError, FileExistsError, ValueError, OverflowError) as error:
            raise OffsiteError(
                f"'{source}' does not hold a folder; ask for a file that 'offsite encrypt' wrote."
            ) from error
        check(partial)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Copy the regular files of an archive into an empty folder.

    Raises:
        OffsiteError: anything but regular files under flat names, or too many of them. A sparse
            file is refused as well, because a few bytes of it can fill a disk.
    """
    for count, entry in enumerate(archive):
        whole = entry.isreg() and not entry.issparse()
        content = archive.extractfile(entry) if whole else None
        if content is None or not FILE_NAME.fullmatch(entry.name) or count >= MAX_FILES:
            raise OffsiteError(
                "The archive holds more than the files of a flat folder; ask for one that 'offsite "
                "encrypt' wrote."
            )
        with open(folder / entry.name, "xb") as file:
            shutil.copyfileobj(content, file)


def _age() -> Any:
    try:
        import pyrage
    except ImportError as error:
        raise MissingExtraError("pyrage", "age", "Encryption") from error
    return pyrage
