"""The tables of a report: scores, and the intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from offsite.report.html import listing
from offsite.report.runs import Setting, show
from offsite.scores.scores import KEYS, TITLES
from offsite.scores.statistics import Interval


def scores(settings: Sequence[Setting]) -> str:
    """The scores and the figures derived from them, for every setting."""
    lines = []
    for setting in settings:
        cells = [escape(setting.label)]
        for key in KEYS:
            found = setting.spread(key)
            extra = found.std if found is not None else None
            around = f" <small>± {within(extra, setting)}</small>" if extra else ""
            cells.append(show(setting.mean(key), setting.metric) + around)
        recovered = setting.mean("recovered")
        cells.append("-" if recovered is None else f"{recovered:.0%}")
        for key in ("gap", "margin"):
            cells.append(show(setting.mean(key), setting.metric, signed=True))
        cells.append(str(len(setting.rows)))
        lines.append((setting, cells))
    head = ["setting", *(TITLES[key] for key in KEYS), "recovered", "gap", "margin", "seeds"]
    return listing(head, lines) + (
        '<p class="soft">± is the sample deviation over seeds. Recovered: the share of full '
        "fine-tuning's gain that the plug-in keeps. Gap: plug-in against tuned emulator. "
        "Margin: plug-in against the emulator healed by tuning every weight of the offer. Both are "
        "positive where the plug-in is better.</p>"
    )


def within(deviation: float, setting: Setting) -> str:
    """A deviation in the unit of the scores beside it."""
    return show(deviation, setting.metric, signed=True).removeprefix("+").removesuffix(" points")


def intervals(settings: Sequence[Setting]) -> str:
    """Paired bootstrap intervals, where the items were kept."""
    found = [(setting, setting.intervals()) for setting in settings]
    if not any(intervals for _, intervals in found):
        return ""
    names = {
        "plug_in - emulator_tuned": "plug-in against tuned emulator",
        "plug_in - healed": "plug-in against healed emulator",
        "plug_in - full_tuned": "plug-in against full fine-tuned",
    }
    names = {key: words for key, words in names.items() if any(key in has for _, has in found)}

    def cell(setting: Setting, interval: Interval | None) -> str:
        if interval is None:
            return "-"
        values = (interval.mean, interval.low, interval.high)
        mean, low, high = (show(v, setting.metric, signed=True) for v in values)
        low = low.removesuffix(" points")
        return f"{mean} <small>{low} … {high.removesuffix(' points')}</small>"

    lines = [
        (s, [escape(s.label), *(cell(s, has.get(key)) for key in names)]) for s, has in found if has
    ]
    return (
        f"<h3>How sure the differences are</h3>{listing(['setting', *names.values()], lines)}"
        '<p class="soft">95% paired bootstrap intervals over the evaluation items, of the mean '
        "over seeds; larger is better for the plug-in. They say nothing of other data or seeds.</p>"
    )
