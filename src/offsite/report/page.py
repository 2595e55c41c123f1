"""The page of a report: its sections, with all text escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources

from offsite.report import pictures
from offsite.report.html import figure, folded, listing, table
from offsite.report.numbers import intervals, scores
from offsite.report.runs import Run, Setting, ranked, show_bytes, with_short_labels
from offsite.report.sections import by_task
from offsite.report.sent import full_label, sent_section
from offsite.report.verdict import verdict

MANY = 6
EXPLAINED = (
    "The data owner tunes adapter blocks around a compressed stand-in (the emulator); the model "
    "owner plugs the change into the full model. The hope is a staircase to the right: a plug-in "
    "above both the untuned model and the tuned emulator."
)


def page(runs: Sequence[Run], title: str) -> str:
    """The whole HTML document."""
    style = (resources.files("offsite.report") / "style.css").read_text("utf-8")
    runs, shared = with_short_labels(runs)
    found = by_task(setting for run in runs for setting in run.settings)
    sections = "".join(section(names, settings, shared) for names, settings in found.items())
    sections += "".join((sent_section(runs), importance(runs), provenance(runs)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(EXPLAINED)}</p>{sections}'
        "</main></body></html>\n"
    )


def section(names: tuple[str, str, str], settings: Sequence[Setting], shared: str) -> str:
    """One model on one task; ``shared`` is what every setting of the page has in common."""
    model, task, metric = names
    head = " on ".join(part for part in (model, task) if part) or "Scores"
    about = ", ".join(part for part in (metric, shared) if part)
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(settings))
    limits, order = pictures.limits(settings), ranked(settings)
    ladders = [figure(s.label, pictures.ladder(s, limits)) for s in order]
    drawn = [
        figure(
            "Training", pictures.curves(order[:MANY]),
            "Loss in nats; dashed: evaluation." + (f" The best {MANY}." if order[MANY:] else ""),
        ),
        figure(
            f"Plug-in against {pictures.protection(settings)}", pictures.frontier(settings),
            "Up and right is better. A dotted line joins the settings no other beats in both.",
        ),
    ]  # fmt: skip
    rest = ""
    if len(settings) > MANY:
        words = "Best plug-in first. A mark at the left edge may lie further out."
        whole = figure("All settings", pictures.overview(order, limits), words, "card tall")
        drawn = [whole, ladders[0], *drawn]
        rest = folded(f"The other {len(ladders) - 1} settings one by one", cards(ladders[1:]))
    else:
        drawn = [*ladders, *drawn]
    return "".join([
        f'<h2>{escape(head)} <span class="soft">{escape(about)}</span></h2>',
        f'<div class="verdict">{said}</div>',
        cards(drawn), rest, "<h3>All scores</h3>", scores(settings), intervals(settings),
    ])  # fmt: skip


def cards(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="cards">{"".join(figures)}</div>'


def importance(runs: Sequence[Run]) -> str:
    """The importance of blocks, where a run measured it."""
    drawn = [
        figure(f"{run.name}: {name}", pictures.importance(name, values))
        for run in runs
        for name, values in run.importance.items()
        if values
    ]
    return f"<h2>Importance of blocks</h2>{cards(drawn)}" if drawn else ""


def provenance(runs: Sequence[Run]) -> str:
    """Commands, environment, recipes and cost."""
    parts = []
    for run in runs:
        if run.command:
            parts.append(f"<h3>{escape(run.name)}</h3><pre>{escape(run.command)}</pre>")
        if run.environment:
            rows = [[escape(str(k)), escape(str(v))] for k, v in run.environment.items()]
            parts.append(table(["computed on", ""], rows, words=(1,)))
    settings = [setting for run in runs for setting in run.settings]
    steps = {s.recipe: s.rows[0]["recipe_steps"] for s in settings if s.rows[0].get("recipe_steps")}
    if steps:
        rows = [
            [escape(n), f"<code>{escape(json.dumps(found))}</code>"] for n, found in steps.items()
        ]
        parts.append(folded(f"{len(steps)} recipes", table(["recipe", "steps"], rows, words=(1,))))
    costs = [
        (s, [
            escape(full_label(s, settings)), _seconds(s.mean("seconds_offer")),
            _seconds(s.mean("seconds_tune")), show_bytes(s.mean("memory_tune")),
        ])
        for s in settings if s.mean("seconds_tune") is not None
    ]  # fmt: skip
    if costs:
        parts.append("<h3>Cost</h3>")
        parts.append(listing(["setting", "making the offer", "tuning", "peak memory"], costs))
    return f"<h2>How it was made</h2>{''.join(parts)}" if parts else ""


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"
