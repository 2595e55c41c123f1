"""Small tools of a forger: change an offer or a delta and make its manifest agree again."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offsite.exchange.file_set import MANIFEST, hash_files

Attack = Callable[[Path], None]


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def seal(folder: Path) -> None:
    """Give the manifest the sizes and hashes of what the folder now holds."""
    manifest = load(folder / MANIFEST)
    manifest["files"] = {n: e.model_dump() for n, e in hash_files(folder).items()}
    dump(folder / MANIFEST, manifest)


def write(name: str, content: str | bytes = "{}") -> Attack:
    """Add or replace one file, sealed."""

    def attack(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        seal(folder)

    return attack


def edit(name: str, **values: Any) -> Attack:
    """Set keys of one JSON file (``a__b`` for a key below a key), sealed."""

    def attack(folder: Path) -> None:
        content = load(folder / name)
        for path, value in values.items():
            place = content
            *above, last = path.split("__")
            for key in above:
                place = place[key]
            place[last] = value
        dump(folder / name, content)
        if name != MANIFEST:
            seal(folder)

    return attack


def manifest(**values: Any) -> Attack:
    """Set keys of the manifest."""
    return edit(MANIFEST, **values)


def raw_manifest(change: Callable[[str], str]) -> Attack:
    """Change the manifest as text."""

    def attack(folder: Path) -> None:
        path = folder / MANIFEST
        path.write_text(change(path.read_text()))

    return attack


def header(name: str, change: Callable[[dict[str, Any]], Any], tail: bytes = b"") -> Attack:
    """Change the header of a safetensors file, keep its data, sealed."""

    def attack(folder: Path) -> None:
        data = (folder / name).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        changed = change(content)
        text = changed if isinstance(changed, bytes) else json.dumps(content).encode()
        body = data[8 + length :] + tail
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + body)
        seal(folder)

    return attack


def first(content: dict[str, Any]) -> dict[str, Any]:
    """The entry of the first tensor of a header."""
    entry: dict[str, Any] = next(v for k, v in content.items() if k != "__metadata__")
    return entry


def both(*attacks: Attack) -> Attack:
    """Several changes, in order."""

    def attack(folder: Path) -> None:
        for one in attacks:
            one(folder)

    return attack
