"""A few plain sentences that say what the figures show."""

from __future__ import annotations

from collections.abc import Sequence

from offsite.report.runs import Setting, best, sends_all, show
from offsite.report.summary import diverged
from offsite.tasks.task import perplexity

CAUTION = (
    "Gap and margin say what this tuned or healed emulator lacked on this data. They are not "
    "bounds: whoever holds the offer can go on training it, also on other data."
)


def verdict(settings: Sequence[Setting]) -> list[str]:
    """Sentences about the best of several settings of one model and task."""
    chosen = best(settings)
    said = []
    if len(settings) > 1 and chosen.mean("plug_in") is not None:
        all_sent = sum(map(sends_all, settings))
        aside = f" ({all_sent} of them aside, whose offer holds the whole middle)"
        said.append(
            f"Of {len(settings)} settings{aside if 0 < all_sent < len(settings) else ''}, "
            f"'{chosen.label}' has the best plug-in score."
        )
    said += [*gain(chosen), *distance(chosen), *need(chosen), *order(chosen), *sent(chosen)]
    said += diverged([row for setting in settings for row in setting.rows])
    if chosen.mean("gap") is not None:
        said.append(CAUTION)
    return said


def gain(setting: Setting) -> list[str]:
    """What plugging brought, against not tuning and against tuning everything."""
    zero, plug, full = (setting.mean(k) for k in ("zero_shot", "plug_in", "full_tuned"))
    metric, sign = setting.metric, 1 if setting.higher else -1
    if plug is None:
        return ["No plug-in score is known yet, so nothing can be said of what tuning brought."]
    numbers = f"{metric} {show(plug, metric)}"
    if zero is None:
        return [
            f"The plugged model reaches {numbers}; without a zero-shot score its gain is unknown."
        ]
    change = show(abs(plug - zero), metric, signed=True).removeprefix("+")
    if sign * (plug - zero) <= 0:
        return [
            f"Tuning did not help: the plugged model reaches {numbers}, where the untuned model "
            f"has {show(zero, metric)}."
        ]
    words = (
        f"Plugging improves {metric} from {show(zero, metric)} to {show(plug, metric)}, by {change}"
    )
    if metric == "loss":
        words += f" (perplexity {perplexity(zero):.4g} to {perplexity(plug):.4g})"
    if full is None or sign * (full - zero) <= 0:
        return [words + "."]
    share = (plug - zero) / (full - zero)
    return [
        f"{words}: {share:.0%} of what full fine-tuning gains, which reaches {show(full, metric)}."
    ]


def distance(setting: Setting) -> list[str]:
    """How far the plug-in is from the tuned emulator, and whether the items can tell."""
    gap = setting.mean("gap")
    if gap is None:
        return []
    size = show(abs(gap), setting.metric, signed=True).removeprefix("+")
    tuned = show(setting.mean("emulator_tuned"), setting.metric)
    if gap > 0:
        said = f"The tuned emulator alone reaches {tuned}, {size} worse than the plug-in"
    elif gap < 0:
        said = (
            f"The tuned emulator alone reaches {tuned}, {size} better than the plug-in: whoever "
            "holds it needs no plug-in"
        )
    else:
        said = f"The tuned emulator alone reaches {tuned}, exactly the plug-in's score"
    return [f"{said}{_interval(setting, 'plug_in - emulator_tuned')}."]


def need(setting: Setting) -> list[str]:
    """Whether a tuner who tunes every weight of the offer still needs the owner."""
    margin, healed = setting.mean("margin"), setting.mean("healed")
    if margin is None:
        return []
    size = show(abs(margin), setting.metric, signed=True).removeprefix("+")
    said = f"A tuner who tunes every weight of the offer reaches {show(healed, setting.metric)}"
    around = _interval(setting, "plug_in - healed")
    if margin > 0:
        return [f"{said}, {size} worse than the plug-in: the margin{around}."]
    than = f"{size} better than" if margin < 0 else "as good as"
    return [
        f"{said}, {than} the plug-in{around}.",
        "The margin is not above zero: the tuner does not need the owner. Compress further, align "
        "longer, or ship fewer bytes.",
    ]


def _interval(setting: Setting, name: str) -> str:
    """The interval over items of one comparison, as the end of a sentence."""
    interval = setting.intervals().get(name)
    if interval is None or interval.low == interval.high:
        return ""
    low, high = (show(v, setting.metric, signed=True) for v in (interval.low, interval.high))
    clear = "does not include zero" if interval.clear else "includes zero, so it may be chance"
    return f"; the {interval.level:.0%} interval over items is {low} to {high} and {clear}"


def order(setting: Setting) -> list[str]:
    """Whether the scores have the order that the method aims at; the first pair that has not."""
    sign = 1 if setting.higher else -1
    hoped = (
        ("emulator_tuned", "full_tuned", "the tuned emulator beats full fine-tuning"),
        ("healed", "full_tuned", "the healed emulator beats full fine-tuning"),
        ("emulator_zero_shot", "zero_shot", "the untuned emulator beats the full model"),
        ("plug_in", "full_tuned", "the plug-in beats full fine-tuning"),
    )
    for less, more, words in hoped:
        a, b = setting.mean(less), setting.mean(more)
        if a is not None and b is not None and sign * (a - b) > 0:
            return [f"Unusual: {words}; look at the training curves and learning rates."]
    return []


def sent(setting: Setting) -> list[str]:
    """How much of the model went out."""
    verbatim, offer, model = (
        setting.mean(key) for key in ("verbatim", "bytes_offer", "bytes_model")
    )
    said = []
    if verbatim is not None:
        share = f"{verbatim:.1%}" if 0 < verbatim < 0.01 else f"{verbatim:.0%}"
        said.append(f"{share} of the parameters leave verbatim")
    if offer is not None and model:
        said.append(f"the offer is {offer / model:.0%} of the model's size")
    if not said:
        return []
    words = ", and ".join(said)
    return [words[0].upper() + words[1:] + "."]
