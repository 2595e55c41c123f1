"""Parts of HTML: cards, tables, folded sections. Cells are HTML already; words are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from offsite.report.runs import Setting, ranked

LONG, SHOWN = 10, 6


def figure(head: str, picture: str, words: str = "", style: str = "card") -> str:
    """A card with a picture; nothing without a picture."""
    if not picture:
        return ""
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    return f'<figure class="{style}"><h3>{escape(head)}</h3>{picture}{caption}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> str:
    """A table; columns in ``words`` are text."""
    style = ['class="words"' if i in words else "" for i in range(len(head))]
    top = "".join(f"<th {s}>{escape(h)}</th>" for h, s in zip(head, style, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {s}>{c}</td>" for c, s in zip(row, style, strict=True)) + "</tr>"
        for row in rows
    )
    inside = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def folded(summary: str, inside: str) -> str:
    """Something that opens when its line is pressed."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def listing(head: Sequence[str], lines: Sequence[tuple[Setting, Sequence[str]]]) -> str:
    """A table with a line for each setting; of many only the best are shown unfolded."""
    if len(lines) <= LONG:
        return table(head, [cells for _, cells in lines])
    first = ranked([setting for setting, _ in lines])[:SHOWN]
    of = {id(setting): cells for setting, cells in lines}
    return table(head, [of[id(setting)] for setting in first]) + folded(
        f"These are the {SHOWN} with the best plug-in score; all {len(lines)}",
        table(head, [cells for _, cells in lines]),
    )
