"""Rows of a data file, each with its line number: JSON lines, a JSON list, TSV or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError

SUFFIXES = (".jsonl", ".json", ".tsv", ".csv")
SPACE = " \t\r\n"


@dataclass(frozen=True)
class Row:
    """One example: its values by column, and where it stands (``"Line 3 of 'a.jsonl'"``)."""

    values: Mapping[str, Any]
    where: str

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            raise OffsiteError(
                f"{self.where} has no column '{column}'; add it, or name another in the task file."
            )
        return self.values[column]


def read_rows(path: str | Path, columns: Sequence[str] = ()) -> list[Row]:
    """Read a whole data file.

    Args:
        path: ``.jsonl`` (one object a line), ``.json`` (a list of objects), ``.tsv`` or ``.csv``.
        columns: names of the columns of a TSV or CSV file that has no header line.

    Raises:
        OffsiteError: missing, empty, of another kind, or a malformed line; the line number is
            named, its text never.
    """
    path = Path(path)
    if not path.is_file():
        raise OffsiteError(f"There is no data file '{path}'.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OffsiteError(f"'{path}' is no table of examples; use {', '.join(SUFFIXES)}.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise OffsiteError(f"'{path}' is not UTF-8 text; convert it first.") from None
    if suffix == ".jsonl":
        found = _lines(content, path)
    elif suffix == ".json":
        found = _list(content, path)
    else:
        found = _table(content, path, columns)
    rows = list(found)
    if not rows:
        raise OffsiteError(f"The data file '{path}' is empty.")
    return rows


def parse_line(line: str, where: str) -> Any:
    """The JSON value of one line.

    Raises:
        OffsiteError: it is none; ``where`` names it.
    """
    line = line.strip(SPACE)
    value, end = _value(line, 0, where)
    if end < len(line):
        raise OffsiteError(f"{where} is not valid JSON.")
    return value


def _value(content: str, place: int, where: str) -> tuple[Any, int]:
    """The JSON value that begins at ``place``, and where it ends."""
    try:
        value, end = json.JSONDecoder().raw_decode(content, place)
        if "\\ud" in content[place:end].lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise OffsiteError(
            f"{where} has one half of a surrogate pair (\\ud800 to \\udfff), which is no "
            "character; remove it."
        ) from None
    except (ValueError, RecursionError):  # the cause would quote the line
        raise OffsiteError(f"{where} is not valid JSON.") from None
    return value, end


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise OffsiteError(f"{where} is no JSON object; each example must be one.")
    return Row(value, where)


def _lines(content: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"Line {number} of '{path}'"
            yield _row(parse_line(line, where), where)


def _list(content: str, path: Path) -> Iterator[Row]:
    place = _skip(content, 0, "")
    if content[place : place + 1] != "[":
        raise OffsiteError(f"'{path}' is no JSON list of objects; use one, or JSON lines.")
    place = _skip(content, place + 1, "")
    while content[place : place + 1] not in ("]", ""):
        where = _line(content, place, path)
        value, place = _value(content, place, where)
        yield _row(value, where)
        place = _skip(content, place, ",")
    if not content[place:]:
        raise OffsiteError(f"'{path}' ends inside its list; it may be truncated.")
    place = _skip(content, place + 1, "")
    if content[place:]:
        raise OffsiteError(
            f"{_line(content, place, path)} goes on after the end of the list; put every example "
            "into the one list, or use JSON lines."
        )


def _line(content: str, place: int, path: Path) -> str:
    number = content.count("\n", 0, place) + 1
    return f"Line {number} of '{path}'"


def _skip(content: str, place: int, more: str) -> int:
    while place < len(content) and (content[place].isspace() or content[place] in more):
        place += 1
    return place


def _table(content: str, path: Path, columns: Sequence[str]) -> Iterator[Row]:
    tabs = path.suffix.lower() == ".tsv"
    lines = csv.reader(
        content.split("\n") if tabs else io.StringIO(content, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header = list(columns)
    for values, where in _checked(lines, path):
        if not values:
            continue
        if not header:
            header = values
        elif len(values) != len(header):
            raise OffsiteError(f"{where} has {len(values)} columns instead of {len(header)}.")
        else:
            yield Row(dict(zip(header, values, strict=True)), where)


def _checked(lines: Any, path: Path) -> Iterator[tuple[list[str], str]]:
    """The rows of a CSV reader, each with its place; one that breaks off is named by its start."""
    while True:
        start = lines.line_num + 1
        try:
            values = next(lines, None)
        except csv.Error as error:
            what = "a quotation mark that does not enclose a whole field; double those inside"
            if "field limit" in str(error):
                what = f"a field of over {csv.field_size_limit()} characters; use JSON lines"
            raise OffsiteError(f"Line {start} of '{path}' has {what}.") from None
        if values is None:
            return
        yield values, f"Line {lines.line_num} of '{path}'"
