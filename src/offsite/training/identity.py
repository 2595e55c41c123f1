"""The identity of a run, which resuming, the lab and scores compare.

A run is a mapping of named parts. Each thing that changes a result gives its own part: a method and
a step their JSON form, a task, a data set and the training options what their ``identity`` says.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.files import sha256_file

# entries of a configuration that say where and with what it was made, not what it computes
PROVENANCE = (
    "dtype", "torch_dtype", "transformers_version", "is_local", "local_files_only", "name_or_path",
)  # fmt: skip
MISSING = object()


@dataclass(frozen=True)
class Identity:
    """Named parts as plain JSON values; make one with :meth:`of`.

    Two runs that have equal identities give equal results on one machine. The parts name private
    data by a hash, so an identity stays with the party whose data it names.
    """

    parts: Mapping[str, Any]

    @classmethod
    def of(cls, **parts: Any) -> Identity:
        """An identity of named parts.

        Args:
            parts: JSON values, paths, tuples, sets, or identities; a set is sorted.

        Raises:
            TypeError: a part whose text would not say what it is, such as a module.
        """
        return cls({name: plain(part) for name, part in parts.items()})

    def __or__(self, other: Identity) -> Identity:
        """Both together; a part that both name is the other's."""
        return Identity({**self.parts, **other.parts})

    @property
    def digest(self) -> str:
        """A hash of all parts: 24 hexadecimal digits, whatever their order."""
        text = json.dumps(self.parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def difference(self, other: Identity) -> tuple[str, ...]:
        """Names of the parts that differ, such as ``("task.augment", "data")``.

        Inside a part that is a mapping in both, only the entries that differ are named.
        """
        return tuple(different(self.parts, other.parts))


def different(mine: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> list[str]:
    """Dotted names of the entries in which two mappings differ, in the order of the first."""
    found: list[str] = []
    for name in dict.fromkeys((*mine, *other)):
        a, b = mine.get(name, MISSING), other.get(name, MISSING)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += different(a, b, f"{above}{name}.")
        elif a != b:
            found.append(f"{above}{name}")
    return found


def plain(value: Any) -> Any:
    """A part as plain JSON: mappings, lists, texts, numbers, truth values and None."""
    if isinstance(value, Identity):
        return dict(value.parts)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(part) for part in value)
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"A {type(value).__name__} has no identity; name it by a hash or a text.")


def config_identity(config: Any) -> Any:
    """A configuration (or None) without the dtype, paths and versions it came with."""
    return None if config is None else without_provenance(config.to_dict())


def without_provenance(value: Any) -> Any:
    """The entries of a configuration that say what is computed."""
    if isinstance(value, Mapping):
        return {
            str(key): without_provenance(part)
            for key, part in value.items()
            if str(key) not in PROVENANCE and not str(key).startswith("_")
        }
    if isinstance(value, (list, tuple)):
        return [without_provenance(part) for part in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def processor_identity(processor: Any) -> str | None:
    """A hash of a tokenizer or image processor as it would be saved; None without one."""
    if processor is None:
        return None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="offsite-") as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix == ".json":
                found[path.name] = without_provenance(json.loads(path.read_text(encoding="utf-8")))
            elif path.is_file():
                found[path.name] = sha256_file(path)
    return Identity(found).digest
