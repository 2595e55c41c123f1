"""Convert JSON to values and back, checked against a schema.

Compression steps and delta methods are frozen dataclasses with a ``kind``: a method *is* its
configuration. Their JSON form is ``{"kind": "drop", "keep": 8}``; only the kinds in a given table
can come back. Manifests and records are pydantic models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from offsite.errors import OffsiteError
from offsite.files import shown


def to_json(method: Any) -> dict[str, Any]:
    """The JSON form of a method: its ``kind`` and every field; a field may hold methods."""

    def plain(value: Any) -> Any:
        parts = isinstance(value, tuple) and all(hasattr(part, "kind") for part in value)
        return [to_json(part) for part in value] if parts and value else value

    fields = {f.name: plain(getattr(method, f.name)) for f in dataclasses.fields(method)}
    return {"kind": method.kind, **fields}


def from_json(kinds: Mapping[str, type], data: Any, what: str) -> Any:
    """Build a method from its JSON form.

    Args:
        kinds: the table of allowed kinds.
        data: ``{"kind": ..., field: value}``; numbers in text form are accepted.
        what: a noun for messages, such as ``"delta method"``.

    Raises:
        OffsiteError: unknown kind, unknown field or a value out of range.
    """
    if not isinstance(data, Mapping) or str(data.get("kind")) not in kinds:
        given = str(data.get("kind"))[:40] if isinstance(data, Mapping) else "that"
        raise OffsiteError(f"'{given}' is not a {what}; choose one of: {', '.join(sorted(kinds))}.")
    cls = kinds[str(data["kind"])]
    values = {key: value for key, value in data.items() if key != "kind"}
    allowed = [field.name for field in dataclasses.fields(cls)]
    if odd := sorted(set(values) - set(allowed)):
        raise OffsiteError(
            f"The {what} '{data['kind']}' has no option '{odd[0]}'; it has: "
            f"{', '.join(allowed) or 'none'}."
        )
    try:
        method: Any = TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        where, why = first_fault(error)
        raise OffsiteError(
            f"The {what} '{data['kind']}' cannot take this {where or 'value'}: {why}."
        ) from error
    for name in allowed:
        value = getattr(method, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise OffsiteError(f"The {what} '{data['kind']}' needs a finite {name}, not {value}.")
    return method


def validate(schema: type[BaseModel], data: Any, path: str | Path) -> Any:
    """Hold parsed JSON to a schema; ``path`` is for messages.

    Raises:
        OffsiteError: naming the first offending key, never its value.
    """
    try:
        return schema.model_validate(data)
    except (ValidationError, RecursionError, OverflowError) as error:
        where, why = "", "it is nested too deeply"
        if isinstance(error, ValidationError):
            where, why = first_fault(error)
        raise OffsiteError(
            f"'{path}' does not follow the format: {where or 'its top level'}: {why}."
        ) from error


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The first key that does not fit its schema (empty for the whole), and why; never a value.

    Raises:
        OffsiteError: a check of our own failed, which says it better.
    """
    first = error.errors(include_input=False, include_url=False)[0]
    if isinstance(own := first.get("ctx", {}).get("error"), OffsiteError):
        raise own from None
    return ".".join(shown(part) for part in first["loc"]), first["msg"].lower()
