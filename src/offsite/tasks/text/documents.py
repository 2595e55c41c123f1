"""Texts, and prompts with completions, read from a file with their line numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import shown
from offsite.tasks.content import read_text
from offsite.tasks.rows import JSON_LINES, Row, json_rows, parse_start

TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
FORM = ("text", "prompt", "completion")
CHATS = ("messages", "conversations", "system", "tools", "functions", "weight")
ANSWERS = ("label", "labels")
PARTS = ("instruction", "context", "input", "output", "question", "answer", "response")
LOSSES = ("loss", "mask", "loss_mask", "completion_mask", "train", "weights", "sample_weight")
OTHERS = ("chosen", "rejected", "prefix", "suffix", "images", "image", "audio", "video", "videos")
EXAMPLES = (*FORM, *CHATS[:2], "instruction", "question", "answer", "response", "chosen")


@dataclass(frozen=True)
class Document:
    """One text to learn, and its place (``"Line 3 of 'a.jsonl'"``).

    Attributes:
        text: all of it is learnt.
        prompt: the text before it, which is not learnt; None for plain text.
    """

    text: str
    where: str
    prompt: str | None = None


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a file: all of them texts, or all of them completions of prompts.

    Args:
        path: a file of JSON lines (``.jsonl``, ``.jsonlines``, ``.ndjson``, ``.jl``) or a JSON list
            of objects (``.json``); a file with any other ending is one plain text.

    Raises:
        OffsiteError: missing, empty, not UTF-8, a table, or a line that is not as described; the
            line number is named, its text never.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        raise OffsiteError(
            f"'{path}' is a table, not plain text; write it as JSON lines with \"text\", or "
            '"prompt" and "completion", in a file ending in .jsonl.'
        )
    content = read_text(path)
    if suffix not in (*JSON_LINES, ".json"):
        check_plain(content, path)
        return [Document(content, f"'{path}'")]
    documents = [read_document(row) for row in json_rows(content, path)]
    for document in documents:
        if (document.prompt is None) != (documents[0].prompt is None):
            raise OffsiteError(
                f'{document.where} changes between "text" and "prompt"; keep one form per file.'
            )
    return documents


def check_plain(content: str, path: Path) -> None:
    """Refuse a plain text that is empty, or that holds examples as JSON under another name."""
    if not content.strip():
        raise OffsiteError(f"The data file '{path}' is empty.")
    start = parse_start(content)
    first = start[0] if isinstance(start, list) and start else start
    if isinstance(first, dict) and any(key in first for key in EXAMPLES):
        raise OffsiteError(
            f"'{path}' holds JSON, which would be learnt as plain text; rename it to .jsonl if "
            "every line is one object, or to .json if it is one list."
        )


def read_document(row: Row) -> Document:
    """One document from one row.

    Raises:
        OffsiteError: neither form, both forms, or a key that asks for something else.
    """

    def filled(key: str) -> Any:
        return row.values.get(key) not in (None, "")

    formed = filled("text") or filled("completion")
    unknown = (*CHATS, *ANSWERS, *OTHERS, *((*PARTS, *LOSSES) if formed else ()))
    if unused := [key for key in unknown if filled(key)]:
        way = ", or use the task 'chat' for conversations" if unused[0] in CHATS else ""
        if unused[0] in ANSWERS:
            way = ", or write a task file that names it as the answer"
        raise OffsiteError(
            f"{row.where} has the key \"{unused[0]}\", which the task 'text' does not use; remove "
            f"it{way}."
        )
    text, prompt, completion = (row[key] if key in row.values else None for key in FORM)
    if filled("text") and (filled("prompt") or filled("completion")):
        raise OffsiteError(
            f'{row.where} has a "text" and also a "prompt" or a "completion"; keep the "text" to '
            "learn all of it, or the other two to learn the completion alone."
        )
    if isinstance(text, str) and text.strip():
        return Document(text, row.where)
    if isinstance(prompt, str) and isinstance(completion, str) and completion.strip():
        return Document(completion, row.where, prompt)
    keys = ", ".join(f"'{shown(key)}'" for key in list(row.values)[:6])
    raise OffsiteError(
        f'{row.where} needs a "text", or a "prompt" and a "completion", as non-empty strings; '
        f"it has {f'the keys {keys}' if keys else 'no key'}."
    )
