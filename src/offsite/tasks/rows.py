"""Rows of a data file, each with its line number: JSON lines, a JSON list, TSV or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError

SUFFIXES = (".jsonl", ".json", ".tsv", ".csv")


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
    if path.suffix not in SUFFIXES:
        raise OffsiteError(f"'{path}' is no table of examples; use {', '.join(SUFFIXES)}.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise OffsiteError(f"'{path}' is not UTF-8 text; convert it first.") from None
    if path.suffix == ".jsonl":
        found = _lines(content, path)
    elif path.suffix == ".json":
        found = _list(content, path)
    else:
        found = _table(content, path, columns)
    rows = list(found)
    if not rows:
        raise OffsiteError(f"The data file '{path}' is empty.")
    return rows


def _row(value: Any, number: int, path: Path) -> Row:
    where = f"Line {number} of '{path}'"
    if not isinstance(value, dict):
        raise OffsiteError(f"{where} is no JSON object; each example must be one.")
    return Row(value, where)


def _lines(content: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:  # the cause would quote the line
                raise OffsiteError(f"Line {number} of '{path}' is not valid JSON.") from None
            yield _row(value, number, path)


def _list(content: str, path: Path) -> Iterator[Row]:
    decoder, place = json.JSONDecoder(), _skip(content, 0, "")
    if content[place : place + 1] != "[":
        raise OffsiteError(f"'{path}' is no JSON list of objects; use one, or JSON lines.")
    place = _skip(content, place + 1, "")
    while content[place : place + 1] not in ("]", ""):
        number = content.count("\n", 0, place) + 1
        try:
            value, place = decoder.raw_decode(content, place)
        except ValueError:
            raise OffsiteError(f"Line {number} of '{path}' is not valid JSON.") from None
        yield _row(value, number, path)
        place = _skip(content, place, ",")
    if not content[place:]:
        raise OffsiteError(f"'{path}' ends inside its list; it may be truncated.")


def _skip(content: str, place: int, more: str) -> int:
    while place < len(content) and (content[place].isspace() or content[place] in more):
        place += 1
    return place


def _table(content: str, path: Path, columns: Sequence[str]) -> Iterator[Row]:
    tabs = path.suffix == ".tsv"
    lines = csv.reader(
        content.split("\n") if tabs else content.splitlines(keepends=True),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
    )
    header = list(columns)
    for values in lines:
        if not values:
            continue
        if not header:
            header = values
        elif len(values) != len(header):
            raise OffsiteError(
                f"Line {lines.line_num} of '{path}' has {len(values)} columns instead of "
                f"{len(header)}."
            )
        else:
            yield Row(dict(zip(header, values, strict=True)), f"Line {lines.line_num} of '{path}'")
