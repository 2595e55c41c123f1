"""Results for the terminal: as many columns as its width can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group
from rich.table import Table
from rich.text import Text

from offsite.report import tables
from offsite.report.runs import Setting, group
from offsite.report.sections import by_task
from offsite.report.summary import Difference, difference_text, differences
from offsite.scores.scores import KEYS, TITLES

Line = Sequence[str]
FEW = 4
SHORT: dict[str, tables.Column] = {
    "emulator": ("emulator\nuntuned", tables.score("emulator_zero_shot")),
    "tuned": ("emulator\ntuned", tables.score("emulator_tuned")),
    "plug": ("\nplug-in", tables.score("plug_in")),
    "recovered": ("\nrecovered", tables.figure("recovered", tables.percent, spread=True)),
    "gap": ("\ngap", tables.figure("gap", lambda v: f"{v:.3f}", spread=True)),
    "margin": ("\nmargin", tables.figure("margin", lambda v: f"{v:.3f}", spread=True)),
    "verbatim": ("\nverbatim", tables.figure("verbatim", lambda v: f"{v:.0%}")),
    "offer": ("\noffer", lambda s: tables.size(s).partition("(")[2].rstrip(")") or "-"),
}
NEEDED = ("trained", "delta bytes", "s to tune", "s per step", "tune memory")
TAKES = [column for column in tables.COSTS if column[0] in NEEDED]
LAYOUTS = (
    tuple(SHORT),
    ("emulator", "tuned", "plug", "recovered", "gap", "margin", "offer"),
    ("tuned", "plug", "recovered", "gap", "margin", "verbatim"),
    ("tuned", "plug", "recovered", "gap", "margin"),
    ("tuned", "plug", "recovered", "margin"),
    ("emulator", "tuned", "plug", "recovered"),
    ("tuned", "plug", "recovered"),
)


@dataclass(frozen=True)
class Fitting:
    """Several forms of one table, the richest first; the first that fits is shown, or the last."""

    forms: tuple[Table, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        wide = options.update(width=10_000)
        for form in self.forms:
            if console.measure(form, options=wide).maximum <= options.max_width:
                yield form
                return
        yield self.forms[-1]


def terminal(rows: Sequence[Mapping[str, Any]], title: str = "") -> Group:
    """The scores as tables, one for each task; losses as perplexity, gap and margin in nats.

    A few settings are side by side if there is room, many are below each other with what all
    share in the title.
    """
    shown: list[Fitting] = []
    for (model, task, metric), settings in by_task(group(rows)).items():
        unit = "perplexity; gap and margin in nats" if metric == "loss" else metric
        head = title or f"{' on '.join(part for part in (model, task) if part)}: {unit}"
        forms = [standing(settings, head)] if len(settings) <= FEW else [whole(settings, head)]
        forms += [listed(settings, head, layout) for layout in LAYOUTS]
        shown.append(Fitting(tuple(forms)))
    return Group(*shown)


def standing(settings: Sequence[Setting], title: str) -> Table:
    """One column per setting."""
    head, body = tables.cells([row for setting in settings for row in setting.rows], costs=False)
    table = Table(title=title, title_justify="left")
    table.add_column(head[0])
    for line in body:
        table.add_column(line[0], justify="right")
    for index, name in enumerate(head[1:], start=1):
        table.add_row(name, *(line[index] for line in body))
    return table


def whole(settings: Sequence[Setting], title: str) -> Table:
    """One line per setting, with everything."""
    head, body = tables.cells([row for setting in settings for row in setting.rows], costs=False)
    return lines(title, head, body)


def listed(settings: Sequence[Setting], title: str, layout: Sequence[str]) -> Table:
    """One line per setting with some columns; what all share is said in the title."""
    fullest = max(settings, key=lambda setting: len(setting.rows))
    known = {key: tables.score(key)(fullest) for key in ("zero_shot", "full_tuned")}
    title += "\n" + ", ".join(f"{TITLES[k]} {value}" for k, value in known.items() if value != "-")
    columns = [SHORT[name] for name in layout]
    body = [[s.label, *(cell(s) for _, cell in columns)] for s in settings]
    used = [i for i in range(len(columns) + 1) if any(line[i] != "-" for line in body)]
    head = ["setting", *(name for name, _ in columns)]
    return lines(title, [head[i] for i in used], [[line[i] for i in used] for line in body], True)


def compared(rows: Sequence[Mapping[str, Any]]) -> Group:
    """The differences with their intervals, one table for each task that has any."""
    shown: list[Fitting] = []
    for (_, task, metric), settings in by_task(group(rows)).items():
        found = [(setting, differences(setting)) for setting in settings]
        if not any(some for _, some in found):
            continue
        seeds = max(len(setting.rows) for setting in settings)
        unit = "nats" if metric == "loss" else "points"
        more = "± deviation over seeds, " if seeds > 1 else ""
        title = (
            f"{task}: plug-in against ... ({unit}, + is better)\n{more}[95% interval over items]"
        )
        every = tuple(tables.DIFFERENCES)
        fewer = tuple(name for name in every if "zero_shot" not in name)
        forms = ((every, True), (every, False), (fewer, True), (fewer, False))
        shown.append(Fitting(tuple(pairs(title, found, metric, chosen, d) for chosen, d in forms)))
    return Group(*shown)


def costs(rows: Sequence[Mapping[str, Any]]) -> Group:
    """What each delta takes, one table for each task that was tuned with several methods."""
    shown: list[Table] = []
    for (_, task, _), settings in by_task(group(rows)).items():
        tuned = [s for s in settings if s.mean("bytes_delta") is not None]
        if len({setting.delta for setting in tuned}) > 1:
            body = [[s.label, *(cell(s) for _, cell in TAKES)] for s in tuned]
            head = ["setting", *(name for name, _ in TAKES)]
            shown.append(lines(f"{task}: what each delta takes", head, body, True))
    return Group(*shown)


def pairs(
    title: str,
    found: Sequence[tuple[Setting, Mapping[str, Difference]]],
    metric: str,
    chosen: Sequence[str],
    deviation: bool,
) -> Table:
    """One line per setting with the chosen ones of its differences."""
    names = [n for n in chosen if any(n in some for _, some in found)]
    head = ["setting", "seeds", *(tables.DIFFERENCES[n].partition(" - ")[2] for n in names)]
    body = [
        [
            setting.label,
            str(len(setting.rows)),
            *(difference_text(some.get(n), metric, deviation=deviation) for n in names),
        ]
        for setting, some in found
        if some
    ]
    return lines(title, head, body, True)


def lines(title: str, head: Line, body: Sequence[Line], narrow: bool = False) -> Table:
    """A table of lines; numbers keep together, words may fold. Without frame where it is narrow."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table(title=title, title_justify="left", **(style if narrow else {}))
    words = ("task", "recipe", "delta", "setting")
    count = len(list(takewhile(words.__contains__, head)))
    for index, name in enumerate(head):
        if index < count:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for line in body:
        table.add_row(*map(Text, line))
    return table


def score_bars(row: Mapping[str, Any]) -> Table:
    """The scores of a row as bars: how far each lies from full zero-shot."""
    table = Table(
        box=None, show_header=False, title=f"perplexity: {row['recipe']}", title_justify="left"
    )
    known = {key: row["scores"].get(key) for key in KEYS}
    high = max(value for value in known.values() if value is not None)
    for key, value in known.items():
        if value is not None:
            bar = "█" * max(1, round(44 * value / high))
            colour = "green" if key == "plug_in" else "blue"
            table.add_row(TITLES[key], Text.assemble((bar, colour), f" {math.exp(value):.1f}"))
    return table
