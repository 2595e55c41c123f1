"""Prompt templates: ``"Question: {question}\\nAnswer:"``.

A placeholder is a column, or one entry of a column that holds a list (``{choices[0]}``). Nothing is
evaluated: no attributes, no format specifications, no conversions. ``{{`` is a literal brace.
"""

from __future__ import annotations

import re
import string

from offsite.errors import OffsiteError
from offsite.tasks.rows import Row

PLACEHOLDER = re.compile(r"([^\W\d]\w*)(?:\[(\d{1,4})\])?")


def parse_template(template: str) -> list[tuple[str, str | None, int | None]]:
    """Cut a template into (literal text, column after it, index into that column).

    Raises:
        OffsiteError: unbalanced braces, or a placeholder that is more than a column.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise OffsiteError(
            f"The template has unbalanced braces ({error}); write {{{{ for {{."
        ) from None
    pieces: list[tuple[str, str | None, int | None]] = []
    for literal, field, spec, conversion in parts:
        if field is None:
            pieces.append((literal, None, None))
            continue
        found = PLACEHOLDER.fullmatch(field)
        if found is None or spec or conversion:
            raise OffsiteError(
                f"The template has the placeholder '{{{field}}}'; use a column such as "
                "{question}, or an entry of one such as {choices[0]}."
            )
        pieces.append((literal, found[1], None if found[2] is None else int(found[2])))
    return pieces


def render(template: str, row: Row) -> str:
    """Fill a template from one row.

    Raises:
        OffsiteError: a column that the row lacks, or whose value is not text or a number.
    """
    text = ""
    for literal, column, index in parse_template(template):
        text += literal
        if column is None:
            continue
        value = row[column]
        if index is not None:
            if not isinstance(value, list) or index >= len(value):
                raise OffsiteError(f"{row.where} has no entry {index} in its column '{column}'.")
            value = value[index]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise OffsiteError(f"{row.where} needs text in its column '{column}'.")
        text += str(value)
    return text
