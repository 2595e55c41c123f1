"""Read the text of a data file, or say which kind of file it is instead."""

from __future__ import annotations

from pathlib import Path

from offsite.errors import OffsiteError
from offsite.files import POINTER

FORMATS = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive (.docx and .xlsx files are such)",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"%PDF-": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table",
    b"SQLite format 3": "an SQLite database",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    POINTER: "a Git LFS pointer (run 'git lfs pull')",
}


def read_text(path: Path) -> str:
    """The text of a data file; a byte order mark at its start is left out.

    Raises:
        OffsiteError: missing, a folder, a pipe or another kind of file; no content is quoted.
    """
    if path.is_dir():
        raise OffsiteError(
            f"'{path}' is a folder; text, chats and questions are read from one file, so name it "
            "(of a saved datasets folder, write the rows as JSON lines with to_json)."
        )
    if not path.exists():
        raise OffsiteError(f"There is no data file '{path}'; check the path.")
    if not path.is_file():
        raise OffsiteError(
            f"'{path}' is a pipe or a device, and data is read more than once; save it as a file."
        )
    content = path.read_bytes()
    if kind := next((FORMATS[start] for start in FORMATS if content.startswith(start)), None):
        raise OffsiteError(f"'{path}' is {kind} and not UTF-8 text; convert or unpack it first.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OffsiteError(f"'{path}' is not UTF-8 text; convert it first.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise OffsiteError(
            f"Line {line} of '{path}' holds a NUL character, which text does not have; the file is "
            "of another kind or damaged."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")
