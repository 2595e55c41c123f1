"""Rows of a data file, each with its line number: JSON lines, a JSON list, TSV or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import shown
from offsite.tasks.content import read_text

JSON_LINES = (".jsonl", ".jsonlines", ".ndjson", ".jl")
TABLES = (".tsv", ".csv")
SPACE = " \t\r\n"
MISSING = (  # what tools write for a missing value: pandas, MySQL, and tables of Excel and its kin
    *("nan", "NaN", "<NA>", "\\N"),
    *("#N/A", "#VALUE!", "#REF!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!"),
)


@dataclass(frozen=True)
class Row:
    """One example: its values by column, and its place (``"Line 3 of 'a.jsonl'"``)."""

    values: Mapping[str, Any]
    where: str

    def __getitem__(self, column: str) -> Any:
        if column not in self.values:
            like = any(str(k).strip().lower() == column.lower() for k in self.values)
            raise OffsiteError(
                f"{self.where} has no column '{column}'"
                + (" (one differs from it by spaces or capitals alone)" if like else "")
                + "; add it, or name another in the task file."
            )
        value = self.values[column]
        if isinstance(value, str) and value.strip() in MISSING:
            raise OffsiteError(
                f"{self.where} has '{value.strip()}' in its column '{column}', as tools write a "
                "missing value; fill it in or remove the line."
            )
        return value


def read_rows(path: str | Path, columns: Sequence[str] = ()) -> list[Row]:
    """Read a whole data file.

    Args:
        path: ``.jsonl``, ``.jsonlines``, ``.ndjson`` or ``.jl`` (one object a line), ``.json`` (a
            list of objects), ``.tsv`` or ``.csv``.
        columns: names of the columns of a TSV or CSV file that has no header line.

    Raises:
        OffsiteError: missing, empty, of another kind, or a malformed line; the line number is
            named, its text never.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*JSON_LINES, ".json", *TABLES) and path.is_file():
        raise OffsiteError(
            f"'{path}' is not a table of examples that offsite reads; use a file ending in "
            f"{', '.join((*JSON_LINES, '.json', *TABLES))}."
        )
    content = read_text(path)
    if suffix not in TABLES:
        return json_rows(content, path, lines=suffix != ".json")
    return _filled(_table(content, path, columns), path)


def json_rows(content: str, path: Path, *, lines: bool | None = None) -> list[Row]:
    """Rows from JSON lines or from a JSON list of objects; by default as the text begins.

    Raises:
        OffsiteError: empty, or malformed; the line is named.
    """
    if lines is None:
        lines = not content.lstrip().startswith("[")
    return _filled(_lines(content, path) if lines else _list(content, path), path)


def _filled(found: Iterator[Row], path: Path) -> list[Row]:
    rows = list(found)
    if not rows:
        raise OffsiteError(f"The data file '{path}' is empty: it holds no example.")
    return rows


def parse_start(content: str) -> Any:
    """The JSON value that a text begins with; None where it does not begin with one."""
    try:
        return json.JSONDecoder().raw_decode(content.lstrip(SPACE))[0]
    except (ValueError, RecursionError):
        return None


def parse_line(line: str, where: str) -> Any:
    """The JSON value of one line.

    Raises:
        OffsiteError: it is none; ``where`` names it.
    """
    line = line.strip(SPACE)
    value, end = _value(line, 0, where)
    if end < len(line):
        raise OffsiteError(
            f"{where} is not valid JSON: more text follows the end of the object; write one "
            "example on each line."
        )
    return value


def _value(content: str, place: int, where: str) -> tuple[Any, int]:
    """The JSON value that begins at ``place``, and where it ends."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise OffsiteError(f"{where} has the key '{shown(key)}' twice; keep one of them.")
            if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value)):
                raise OffsiteError(
                    f"{where} has NaN or an infinite number under '{shown(key)}', as some tools "
                    "write a missing value; fill it in or remove the line."
                )
            seen[key] = value
        return seen

    try:
        value, end = json.JSONDecoder(object_pairs_hook=checked).raw_decode(content, place)
        if "\\ud" in content[place:end].lower():
            json.dumps(value, ensure_ascii=False).encode()
    except OffsiteError:
        raise
    except UnicodeEncodeError:
        raise OffsiteError(
            f"{where} has one half of a surrogate pair (\\ud800 to \\udfff), which is not a "
            "character; remove it."
        ) from None
    except (ValueError, RecursionError) as error:  # the cause would quote the line
        raise OffsiteError(f"{where} {_malformed(error, content)}.") from None
    return value, end


def _malformed(error: Exception, content: str) -> str:
    """Why a JSON value cannot be read, without quoting it."""
    if isinstance(error, RecursionError):
        return "is not valid JSON: it is nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "is not valid JSON: a number has too many digits"
    if error.pos >= len(content) or error.msg.startswith("Unterminated string"):
        return (
            "is not valid JSON: the value that begins there does not end there; write each "
            "example on one line, or ask for the file again if it was cut off"
        )
    return "is not valid JSON"


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise OffsiteError(f"{where} is not a JSON object; each example must be one.")
    return Row(value, where)


def _lines(content: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"Line {number} of '{path}'"
            yield _row(parse_line(line, where), where)


def _list(content: str, path: Path) -> Iterator[Row]:
    place = _skip(content, 0, "")
    if content[place : place + 1] != "[":
        raise OffsiteError(f"'{path}' is not a JSON list of objects; use one, or JSON lines.")
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
            if len(header) == 1 and (other := next((s for s in ";\t|" if s in header[0]), None)):
                name = "tabs" if other == "\t" else f"'{other}'"
                raise OffsiteError(
                    f"The columns of '{path}' are separated by {name}, it seems; save it with "
                    "commas, or with tabs as .tsv."
                )
            if twice := [name for name in header if header.count(name) > 1]:
                raise OffsiteError(
                    f"{where} names the column '{shown(twice[0])}' twice; rename one of them."
                )
        elif len(values) != len(header):
            raise OffsiteError(
                f"{where} has {len(values)} columns instead of {len(header)}; correct it."
            )
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
