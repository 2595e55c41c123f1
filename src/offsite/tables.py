"""Results as tables: for the terminal, Markdown, LaTeX and CSV, from the lab's rows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from offsite.report.runs import Setting, group, show_bytes
from offsite.scores import KEYS, TITLES


def shown(setting: Setting, value: float | None) -> str:
    """A score as people read it: losses as perplexity, shares in percent."""
    if value is None:
        return "-"
    if setting.metric == "loss":
        return f"{math.exp(min(value, 700)):.1f}"
    return f"{100 * value:.1f}"


def score(key: str) -> Callable[[Setting], str]:
    """A cell with a score: its mean, and its deviation over seeds."""

    def cell(setting: Setting) -> str:
        found = setting.spread(key)
        if found is None:
            return "-"
        text = shown(setting, found.mean)
        if found.std is None or setting.metric == "loss":
            return text
        return f"{text} ± {100 * found.std:.1f}"

    return cell


def figure(
    key: str, form: Callable[[float], str], *, spread: bool = False
) -> Callable[[Setting], str]:
    """A cell with another figure."""

    def cell(setting: Setting) -> str:
        found = setting.spread(key)
        if found is None:
            return "-"
        deviation = f" ± {form(found.std)}" if spread and found.std is not None else ""
        return form(found.mean) + deviation

    return cell


def size(setting: Setting) -> str:
    """Bytes of the offer, and their share of the model's."""
    offer, model = setting.mean("bytes_offer"), setting.mean("bytes_model")
    return "-" if offer is None or not model else f"{show_bytes(offer)} ({offer / model:.0%})"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}%"


Column = tuple[str, Callable[[Setting], str]]
NAMES: tuple[Column, ...] = (
    ("task", lambda s: s.task),
    ("recipe", lambda s: s.recipe),
    ("delta", lambda s: s.delta),
)
SCORES: tuple[Column, ...] = (
    *((TITLES[key], score(key)) for key in KEYS),
    ("recovered", figure("recovered", percent, spread=True)),
    ("gap", figure("gap", lambda v: f"{v:.3f}", spread=True)),
    ("disclosed", figure("disclosed", percent)),
    ("offer", size),
)
COSTS: tuple[Column, ...] = (
    ("delta bytes", figure("bytes_delta", show_bytes)),
    ("trained", figure("trainable", lambda v: f"{v:,.0f}")),
    ("s to offer", figure("seconds_offer", lambda v: f"{v:.1f}")),
    ("offer memory", figure("memory_offer", show_bytes)),
    ("s per step", figure("seconds_per_step", lambda v: f"{v:.3f}")),
    ("tune memory", figure("memory_tune", show_bytes)),
)


def cells(
    rows: Sequence[Mapping[str, Any]], *, costs: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Header and body of the results table, one line per setting, means over seeds."""
    settings = group(rows)
    columns = [*NAMES, *SCORES, *(COSTS if costs else ())]
    if len({s.task for s in settings}) == 1:
        columns = columns[1:]
    body = [[cell(setting) for _, cell in columns] for setting in settings]
    used = [i for i in range(len(columns)) if any(line[i] not in ("-", "") for line in body)]
    return [columns[i][0] for i in used], [[line[i] for i in used] for line in body]


def terminal(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The scores as a table for the terminal; losses are shown as perplexity, the gap in nats.

    A few settings stand side by side, many below each other.
    """
    head, body = cells(rows, costs=False)
    table = Table(title=title, title_justify="left")
    if len(body) > 4:
        for name in head:
            text = name in ("task", "recipe", "delta")
            table.add_column(name, justify="left" if text else "right", overflow="fold")
        for line in body:
            table.add_row(*line)
        return table
    table.add_column(head[0])
    for line in body:
        table.add_column(line[0], justify="right")
    for index, name in enumerate(head[1:], start=1):
        table.add_row(name, *(line[index] for line in body))
    return table


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table."""
    head, body = cells(rows)
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """A LaTeX ``tabular`` in booktabs style."""
    head, body = cells(rows, costs=False)

    def line(values: Sequence[str]) -> str:
        safe = [v.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$") for v in values]
        return " & ".join(safe) + r" \\"

    inner = "\n".join(line(values) for values in body)
    return (
        f"\\begin{{tabular}}{{{'l' * 2}{'r' * (len(head) - 2)}}}\n\\toprule\n{line(head)}\n"
        f"\\midrule\n{inner}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def table_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row (seed), plain numbers."""
    names = ("model", "task", "recipe", "delta", "seed")
    figures = ("recovered", "gap", "disclosed", "bytes_offer", "bytes_model", "bytes_delta")
    costs = ("trainable", "seconds_offer", "seconds_tune", "seconds_per_step", "memory_offer")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "metric", *KEYS, *figures, *costs])
    for row in rows:
        known = row["scores"]
        writer.writerow(
            [
                *(row.get(key, "") for key in (*names, "metric")),
                *(known.get(key, "") for key in KEYS),
                *(row.get(key, "") for key in (*figures, *costs)),
            ]
        )
    return out.getvalue()
