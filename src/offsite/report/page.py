"""The page around the pictures: sections, tables, and everything escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from offsite.report import pictures
from offsite.report.runs import Run, Setting, best, by_task, show, show_bytes
from offsite.report.verdict import verdict
from offsite.scores import KEYS, TITLES
from offsite.statistics import Interval

MANY = 6
EXPLAINED = (
    "The data owner tunes adapter blocks around a compressed stand-in (the emulator); the model "
    "owner plugs the change into the full model. Hoped for is a staircase to the right: the "
    "plug-in above both the untuned model and the tuned emulator."
)


def page(runs: Sequence[Run], title: str) -> str:
    """The whole HTML document."""
    style = (resources.files("offsite.report") / "style.css").read_text("utf-8")
    sections = "".join(
        section(names, settings)
        for names, settings in by_task(s for run in runs for s in run.settings).items()
    ) + "".join((left(runs), importance(runs), made(runs)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(EXPLAINED)}</p>{sections}'
        "</main></body></html>\n"
    )


def section(names: tuple[str, str, str], settings: Sequence[Setting]) -> str:
    """One model on one task."""
    model, task, metric = names
    head = " on ".join(part for part in (model, task) if part) or "Scores"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(settings))
    limits = pictures.limits(settings)
    first = [best(settings), *(s for s in settings if s is not best(settings))]
    cards = [figure(s.label, pictures.ladder(s, limits)) for s in first]
    more = "".join(cards[MANY:])
    hidden = (
        f'<details><summary>{len(cards) - MANY} more settings</summary><div class="cards">{more}'
        "</div></details>"
    )
    parts = [
        f'<h2>{escape(head)} <span class="soft">{escape(metric)}</span></h2>',
        f'<div class="verdict">{said}</div>',
        f'<div class="cards">{"".join(cards[:MANY])}</div>{hidden if more else ""}',
        "<h3>All scores</h3>",
        scores(settings),
        intervals(settings),
    ]
    drawn = [
        figure("Training", pictures.curves(settings), "Loss in nats; dashed: evaluation."),
        figure(
            "Plug-in against gap", pictures.frontier(settings),
            "Up and right is better. A dotted line joins the settings no other beats in both.",
        ),
    ]  # fmt: skip
    if any(drawn):
        parts.append(f'<h3>Curves</h3><div class="cards">{"".join(drawn)}</div>')
    return "".join(parts)


def figure(head: str, picture: str, words: str = "") -> str:
    """A card with a picture; nothing where there is no picture."""
    if not picture:
        return ""
    caption = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    return f'<figure class="card"><h3>{escape(head)}</h3>{picture}{caption}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns in ``words`` are text."""
    style = ['class="words"' if i in words else "" for i in range(len(head))]
    top = "".join(f"<th {s}>{escape(h)}</th>" for h, s in zip(head, style, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td {s}>{c}</td>" for c, s in zip(row, style, strict=True)) + "</tr>"
        for row in rows
    )
    inside = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def scores(settings: Sequence[Setting]) -> str:
    """The five scores and the figures derived from them, for every setting."""
    rows = []
    for setting in settings:
        cells = [escape(setting.label)]
        for key in KEYS:
            found = setting.spread(key)
            extra = found.std if found is not None else None
            around = f" <small>± {within(extra, setting)}</small>" if extra is not None else ""
            cells.append(show(setting.mean(key), setting.metric) + around)
        recovered = setting.mean("recovered")
        cells.append("-" if recovered is None else f"{recovered:.0%}")
        cells.append(show(setting.mean("gap"), setting.metric, signed=True))
        cells.append(str(len(setting.rows)))
        rows.append(cells)
    head = ["setting", *(TITLES[key] for key in KEYS), "recovered", "gap", "seeds"]
    return table(head, rows) + (
        '<p class="soft">± is the sample deviation over seeds. Recovered: the share of full '
        "fine-tuning's gain that the plug-in keeps. Gap: plug-in against tuned emulator, positive "
        "where the plug-in is better.</p>"
    )


def within(deviation: float, setting: Setting) -> str:
    """A deviation in the unit of the scores beside it."""
    return show(deviation, setting.metric, signed=True).removeprefix("+").removesuffix(" points")


def intervals(settings: Sequence[Setting]) -> str:
    """Paired bootstrap intervals, where the items were kept."""
    found = [(setting, setting.intervals()) for setting in settings]
    if not any(intervals for _, intervals in found):
        return ""
    names = {"plug_in - emulator_tuned": "plug-in against tuned emulator"}
    names["plug_in - full_tuned"] = "plug-in against full fine-tuned"

    def cell(setting: Setting, interval: Interval | None) -> str:
        if interval is None:
            return "-"
        values = (interval.mean, interval.low, interval.high)
        mean, low, high = (show(v, setting.metric, signed=True) for v in values)
        return f"{mean} <small>{low} … {high}</small>"

    rows = [[escape(s.label), *(cell(s, has.get(key)) for key in names)] for s, has in found if has]
    return table(["setting", *names.values()], rows) + (
        '<p class="soft">95% paired bootstrap intervals over the evaluation items; larger is '
        "better for the plug-in. They say nothing of other data or other seeds.</p>"
    )


def left(runs: Sequence[Run]) -> str:
    """What left the house: bytes, disclosed share, contents of folders."""
    rows = []
    for run in runs:
        for s in run.settings:
            offer, model, delta = (s.mean(k) for k in ("bytes_offer", "bytes_model", "bytes_delta"))
            share = s.mean("disclosed")
            if offer is None and delta is None and share is None:
                continue
            part = f" <small>{offer / model:.0%}</small>" if offer is not None and model else ""
            rows.append([
                escape(s.label), show_bytes(model), show_bytes(offer) + part, show_bytes(delta),
                "-" if share is None else f"{share:.1%}",
            ])  # fmt: skip
    folders = "".join(contents(run.name, run.manifest) for run in runs if run.manifest)
    stand = strips(runs)
    if not rows and not folders and not stand:
        return ""
    head = ["setting", "model", "offer", "delta", "disclosed"]
    listed = table(head, rows) if rows else ""
    caution = (
        '<p class="soft">Disclosed: share of the middle\'s parameters that leave bit for bit. What '
        "is compressed or healed leaves too, in another form, and is not counted here.</p>"
    )
    return f"<h2>What left the house</h2>{listed}{caution}{stand}{folders}"


def strips(runs: Sequence[Run]) -> str:
    """Where each emulator's blocks stand in the model, for the runs that say."""
    drawn = []
    for setting in (s for run in runs for s in run.settings):
        total, adapter, kept = (setting.rows[0].get(k) for k in ("total", "adapter", "positions"))
        if isinstance(total, int) and isinstance(adapter, list) and isinstance(kept, list):
            picture = pictures.blocks(total, adapter, kept)
            drawn.append(f"<h3>{escape(setting.label)}</h3>{picture}")
    if not drawn:
        return ""
    colours = (("plug", "adapter"), ("emulator", "in the emulator"), ("gone", "left out"))
    key = "".join(f'<span style="--dot:var(--{c})">{words}</span>' for c, words in colours)
    return (
        f'<figure class="card wide">{"".join(dict.fromkeys(drawn))}'
        f'<div class="key soft">{key}</div><figcaption>For the owner: these positions do not '
        "travel with the offer.</figcaption></figure>"
    )


def contents(name: str, manifest: Mapping[str, Any]) -> str:
    """The files and tensors of an offer or a delta."""
    kind = str(manifest.get("kind", "folder"))
    files: Mapping[str, Any] = manifest.get("files") or {}
    tensors: Mapping[str, Any] = manifest.get("tensors") or {}
    rows = [
        [escape(str(file)), show_bytes(entry.get("size")), escape(str(entry.get("sha256"))[:16])]
        for file, entry in files.items()
    ]
    kinds = Counter(str(entry.get("dtype")) for entry in tensors.values())
    said = ", ".join(f"{count} {dtype}" for dtype, count in kinds.most_common())
    shapes = [
        [
            escape(str(t)),
            escape(str(entry.get("dtype"))),
            escape(" x ".join(map(str, entry["shape"]))),
        ]
        for t, entry in tensors.items()
    ]
    method = manifest.get("method")
    tuned = f"<p>Method: <code>{escape(str(method))}</code></p>" if method else ""
    return (
        f"<h3>{escape(kind)}: {escape(name)}</h3>{tuned}"
        + table(["file", "size", "SHA-256 (start)"], rows, words=(2,))
        + f"<details><summary>{len(tensors)} tensors ({escape(said)})</summary>"
        + table(["tensor", "dtype", "shape"], shapes)
        + "</details>"
    )


def importance(runs: Sequence[Run]) -> str:
    """The importance of blocks, where a run measured it."""
    drawn = [
        figure(f"{run.name}: {name}", pictures.importance(name, values))
        for run in runs
        for name, values in run.importance.items()
        if values
    ]
    return (
        f'<h2>Importance of blocks</h2><div class="cards">{"".join(drawn)}</div>' if drawn else ""
    )


def made(runs: Sequence[Run]) -> str:
    """Commands, environment and cost."""
    parts = []
    for run in runs:
        if run.command:
            parts.append(f"<h3>{escape(run.name)}</h3><pre>{escape(run.command)}</pre>")
        if run.environment:
            rows = [[escape(str(k)), escape(str(v))] for k, v in run.environment.items()]
            parts.append(table(["environment", ""], rows, words=(1,)))
    costs = [
        [
            escape(s.label), _seconds(s.mean("seconds_offer")), _seconds(s.mean("seconds_tune")),
            show_bytes(s.mean("memory_tune")),
        ]
        for run in runs for s in run.settings if s.mean("seconds_tune") is not None
    ]  # fmt: skip
    if costs:
        parts.append(table(["setting", "making the offer", "tuning", "peak memory"], costs))
    return f"<h2>How it was made</h2>{''.join(parts)}" if parts else ""


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"
