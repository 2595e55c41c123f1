"""Divide an owner's data into three parts: to compress with, to tune on, to score on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offsite.errors import OffsiteError
from offsite.files import write_file
from offsite.tasks.content import read_text
from offsite.tasks.rows import JSON_LINES, TABLES

LENGTH = 64  # tokens of a row
SCORED = 16  # rows to score on
TOKEN = 5  # characters of a token, about


def parts(data: str, eval_data: str | None, work: Path, tokens: int) -> tuple[str, str, str]:
    """Files to compress with, to play the tuner's data, and to score on.

    Args:
        tokens: how many the first two need; a text or JSON lines are cut to about as much, and what
            is scored to :data:`SCORED` rows.

    Raises:
        OffsiteError: data that is too short, or that cannot be divided.
    """
    path, scored = Path(data), SCORED * LENGTH
    if not divisible(path):
        if eval_data is None:
            raise OffsiteError(
                f"'{data}' cannot be divided into parts; give --eval-data with other examples to "
                "score on."
            )
        return data, data, eval_data
    units = units_of(path)
    shares = (0.5, 1.0) if eval_data is not None else (0.4, 0.8, 1.0)
    found = []
    start = 0
    for index, share in enumerate(shares):
        end = round(share * len(units))
        file = work / f"part-{index}{path.suffix.lower() or '.txt'}"
        if not beginning(units[start:end], file, scored if index == 2 else tokens):
            raise OffsiteError(f"'{data}' is too short to be divided; give more of it.")
        found.append(str(file))
        start = end
    if eval_data is None:
        return found[0], found[1], found[2]
    if divisible(Path(eval_data)):
        file = work / f"part-2{Path(eval_data).suffix.lower() or '.txt'}"
        if beginning(units_of(Path(eval_data)), file, scored):
            eval_data = str(file)
    return found[0], found[1], eval_data


def divisible(path: Path) -> bool:
    """Whether data is a text or JSON lines, which can be cut anywhere between two units."""
    others = (".json", ".npz", ".parquet", ".xlsx", *TABLES)
    return not path.is_dir() and path.suffix.lower() not in others and ":" not in str(path)


def units_of(path: Path) -> list[str]:
    """The lines of JSON lines, or the words of a text, each with what follows it."""
    content = read_text(path)
    if path.suffix.lower() in JSON_LINES:
        return content.splitlines(keepends=True)
    return [word + " " for word in content.split(" ")]


def beginning(units: Sequence[str], file: Path, tokens: int) -> bool:
    """Write the first units, of about so many tokens; False where they hold no text."""
    count = length = 0
    while count < len(units) and length < TOKEN * tokens:
        length += len(units[count])
        count += 1
    text = "".join(units[:count])
    if not text.strip():
        return False
    write_file(file, text)
    return True
