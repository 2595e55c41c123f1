"""A data set by name: a file or folder, and the part of it to use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import sha256_file


@dataclass(frozen=True)
class Source:
    """A file or folder of data.

    Attributes:
        path: the file or folder.
        part: what is meant of it, such as ``"test:cat,dog"`` of ``"pets.npz:test:cat,dog"``; empty
            for all.
    """

    path: Path
    part: str = ""

    @classmethod
    def of(cls, text: str | Path) -> Source:
        """From ``PATH`` or ``PATH:PART``; a path that exists may itself contain a colon."""
        whole = Path(text)
        if whole.exists() or ":" not in str(text):
            return cls(whole)
        path, _, part = str(text).partition(":")
        return cls(Path(path), part)

    def __str__(self) -> str:
        return f"{self.path}:{self.part}" if self.part else str(self.path)

    def check(self) -> None:
        """Refuse a source that is not there.

        Raises:
            OffsiteError: neither a file nor a folder.
        """
        if not self.path.exists():
            raise OffsiteError(f"There is no data file '{self}'; check the path.")

    def identity(self) -> str:
        """The identity of the data, which does not depend on its path: a hash of the contents.

        A folder counts by the names and contents of its files; hidden ones are left out.
        """
        if self.path.is_file():
            found = sha256_file(self.path)
        else:
            names = {f.relative_to(self.path): f for f in self.path.rglob("*") if f.is_file()}
            listed = [
                (name.as_posix(), sha256_file(file))
                for name, file in sorted(names.items())
                if not any(part.startswith(".") for part in name.parts)
            ]
            found = hashlib.sha256(repr(listed).encode()).hexdigest()
        return f"{found}:{self.part}" if self.part else found


def data_identity(data: Any) -> str | None:
    """What tells data from other data.

    Args:
        data: a path (:meth:`Source.identity`), rows (a hash of all of them), or None.
    """
    if data is None:
        return None
    if isinstance(data, (str, Path)):
        return Source.of(data).identity()
    found = hashlib.sha256(str(len(data)).encode())
    for index in range(len(data)):
        for key, value in sorted(data[index].items()):
            raw = value.numpy().tobytes() if hasattr(value, "numpy") else str(value).encode()
            found.update(key.encode() + raw)
    return found.hexdigest()
