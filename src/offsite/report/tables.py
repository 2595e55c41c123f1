"""Results as tables: Markdown, LaTeX and CSV, from the lab's rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from offsite.report.runs import Setting, group, show_bytes
from offsite.report.summary import difference_text, differences
from offsite.scores.scores import DERIVED, KEYS, TITLES
from offsite.scores.statistics import COMPARISONS
from offsite.tasks.task import perplexity


def shown(setting: Setting, value: float | None) -> str:
    """A score as people read it: losses as perplexity, shares in percent."""
    if value is None:
        return "-"
    if setting.metric == "loss":
        return f"{perplexity(value):.1f}"
    return f"{100 * value:.1f}"


def score(key: str) -> Callable[[Setting], str]:
    """A cell with a score: its mean, and its deviation over seeds (perplexity: to first order)."""

    def cell(setting: Setting) -> str:
        found = setting.spread(key)
        if found is None:
            return "-"
        text = shown(setting, found.mean)
        if not found.std:  # one seed, or a score that no seed changes
            return text
        scale = perplexity(found.mean) if setting.metric == "loss" else 100
        return f"{text} ± {scale * found.std:.1f}"

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
    ("model", lambda s: s.model),
    ("task", lambda s: s.task),
    ("scored on", lambda s: s.fact("eval_name")),
    ("recipe", lambda s: s.recipe),
    ("delta", lambda s: s.delta),
    ("setup", lambda s: s.tag.strip()),
)
SCORES: tuple[Column, ...] = (
    *((TITLES[key], score(key)) for key in KEYS),
    ("recovered", figure("recovered", percent, spread=True)),
    ("gap", figure("gap", lambda v: f"{v:.3f}", spread=True)),
    ("margin", figure("margin", lambda v: f"{v:.3f}", spread=True)),
    ("healed on public text first", score("healed_public")),
    ("margin over that", figure("margin_public", lambda v: f"{v:.3f}", spread=True)),
    ("verbatim", figure("verbatim", percent)),
    ("offer", size),
)
COSTS: tuple[Column, ...] = (
    ("delta bytes", figure("bytes_delta", show_bytes)),
    ("trained", figure("trainable", lambda v: f"{v:,.0f}")),
    ("s to offer", figure("seconds_offer", lambda v: f"{v:.1f}")),
    ("offer memory", figure("memory_offer", show_bytes)),
    ("s to tune", figure("seconds_tune", lambda v: f"{v:.1f}")),
    ("s per step", figure("seconds_per_step", lambda v: f"{v:.3f}")),
    ("tune memory", figure("memory_tune", show_bytes)),
)


DIFFERENCES = {
    "plug_in - emulator_tuned": "plug-in - emulator fine-tuned",
    "plug_in - healed": "plug-in - emulator healed",
    "plug_in - full_tuned": "plug-in - full fine-tuned",
    "plug_in - zero_shot": "plug-in - full zero-shot",
}
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "%_&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)
EXPLAINED = (
    "Differences in nats, or in points for shares; positive is better for the plug-in. Mean, "
    "deviation over seeds, and in brackets the 95% paired bootstrap interval over evaluation items."
)


def names(settings: Sequence[Setting]) -> list[Column]:
    """The columns that say which setting a line is: recipe, delta, and what else differs."""

    def differs(column: Column) -> bool:
        return len({column[1](setting) for setting in settings}) > 1

    return [column for column in NAMES if column[0] in ("recipe", "delta") or differs(column)]


def cells(
    rows: Sequence[Mapping[str, Any]], *, costs: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Header and body of the results table, one line per setting, means over seeds."""
    settings = group(rows)
    columns = [*names(settings), *SCORES, *(COSTS if costs else ())]
    body = [[cell(setting) for _, cell in columns] for setting in settings]
    used = [i for i in range(len(columns)) if any(line[i] not in ("-", "") for line in body)]
    return [columns[i][0] for i in used], [[line[i] for i in used] for line in body]


def compared(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table of differences; no body where there are none."""
    settings = [(setting, differences(setting)) for setting in group(rows)]
    known = [name for name in COMPARISONS if any(name in found for _, found in settings)]
    columns = names([setting for setting, _ in settings])
    body = [
        [
            *(cell(setting) for _, cell in columns),
            str(len(setting.rows)),
            *(difference_text(found.get(name), setting.metric) for name in known),
        ]
        for setting, found in settings
        if found
    ]
    return [*(head for head, _ in columns), "seeds", *(DIFFERENCES[n] for n in known)], body


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables: the scores, and the differences with their intervals."""

    def line(values: Sequence[str]) -> str:
        safe = [value.replace("|", r"\|") for value in values]
        return f"| {' | '.join(safe)} |\n"

    def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
        return "".join(line(values) for values in (head, ["---"] * len(head), *body))

    text, (head, body) = table(*cells(rows)), compared(rows)
    return text + (f"\n{table(head, body)}\n{EXPLAINED}\n" if body else "")


def latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """LaTeX ``tabular`` in booktabs style: the scores, and the differences with their intervals."""

    def line(values: Sequence[str]) -> str:
        return " & ".join(value.translate(LATEX) for value in values) + r" \\"

    def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
        words = sum(name in dict(NAMES) for name in head)
        inner = "\n".join(line(values) for values in body)
        return (
            f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(head) - words)}}}\n\\toprule\n"
            f"{line(head)}\n\\midrule\n{inner}\n\\bottomrule\n\\end{{tabular}}\n"
        )

    head, body = compared(rows)
    return table(*cells(rows, costs=False)) + (
        f"\n% {EXPLAINED}\n{table(head, body)}" if body else ""
    )


def table_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row (seed), plain numbers."""
    names = ("model", "task", "recipe", "delta", "seed")
    figures = (*DERIVED, "bytes_offer", "bytes_model", "bytes_delta")
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


def intervals_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per setting and comparison, plain numbers in the metric's unit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("model", "task", "recipe", "delta", "metric")
    writer.writerow([*names, "difference", "mean", "std", "seeds", "low", "high", "level", "items"])
    for setting in group(rows):
        for name, found in differences(setting).items():
            over, inside = found.over_seeds, found.interval
            limits = [] if inside is None else [inside.low, inside.high, inside.level, inside.items]
            values = [*(getattr(setting, n) for n in names), name, over.mean, over.std, over.count]
            writer.writerow([*values, *limits, *[""] * (4 - len(limits))])
    return out.getvalue()
