"""The pictures of a report: scores, curves, frontier, importance, blocks.

Each is drawn 360 units wide, so that its words stay readable on a phone. Better is always to the
right or up, whatever the direction of the metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from offsite.report.runs import Setting, show
from offsite.report.svg import (
    line,
    mark,
    picture,
    polyline,
    rectangle,
    room,
    scale,
    short,
    text,
    ticks,
)

WIDTH, NUMBERED = 360, 8
OVER = {"margin": "margin (over healed emulator)", "gap": "gap (over tuned emulator)"}
LADDER = (
    ("emulator_zero_shot", "emulator, untuned", "square", "emulator hollow"),
    ("zero_shot", "model, untuned", "circle", "model hollow"),
    ("emulator_tuned", "emulator, tuned", "square", "emulator"),
    ("healed", "emulator, healed", "square", "emulator"),
    ("plug_in", "plug-in", "diamond", "plug"),
    ("full_tuned", "model, fully tuned", "circle", "model"),
)


def ladder(setting: Setting, limits: tuple[float, float]) -> str:
    """The scores of one setting, one under another; a rising staircase is what one hopes for.

    Small dots are seeds, whiskers the deviation over seeds (for one seed the standard error). A
    step backwards is drawn in the colour of a warning.
    """
    left, right, row = 128, 300, 25
    known = [entry for entry in LADDER if setting.mean(entry[0]) is not None]
    bottom = 14 + row * len(known)
    low, high = limits
    place = scale(low, high, left, right) if setting.higher else scale(high, low, left, right)
    parts = [line(place(t), 8, place(t), bottom, "grid") for t in ticks(low, high)]
    parts += [
        text(place(t), bottom + 13, _tick(t, setting), "small", "middle") for t in ticks(low, high)
    ]
    parts.append(text(right, bottom + 27, f"{setting.metric}, better →", "small", "end"))
    spots = []
    for index, (key, *_) in enumerate(known):
        mean = setting.mean(key)
        assert mean is not None
        spots.append((place(mean), 20 + row * index))
    for (x1, y1), (x2, y2) in pairwise(spots):
        parts.append(line(x1, y1, x2, y2, "step" if x2 >= x1 else "step back"))
    for (key, label, shape, style), (x, y) in zip(known, spots, strict=True):
        mean, error = setting.mean(key), setting.error(key)
        assert mean is not None
        if error:
            ends = [place(min(max(mean + e, low), high)) for e in (-error, error)]
            parts.append(line(ends[0], y, ends[1], y, "whisker"))
        if len(setting.values(key)) > 1:
            parts += [mark(place(v), y, "circle", "seed", 1.8) for v in setting.values(key)]
        parts.append(text(0, y + 4, label, "label"))
        parts.append(
            mark(x, y, shape, style, 6 if key == "plug_in" else 5, show(mean, setting.metric))
        )
        parts.append(text(WIDTH, y + 4, show(mean, setting.metric), "value", "end"))
    said = ", ".join(
        f"{label} {show(setting.mean(key), setting.metric)}" for key, label, *_ in known
    )
    return picture(WIDTH, bottom + 32, parts, f"{setting.label}: {said}")


def overview(settings: Sequence[Setting], limits: tuple[float, float]) -> str:
    """Many settings, one under another: all marks of each on one line, its plug-in score beside it.

    The axis holds what is tuned and the untuned model; an untuned emulator far worse than that
    stands at its left edge.
    """
    kept = [v for s in settings for key, *_ in LADDER[1:] for v in s.values(key)]
    low, high = room(kept) if kept else limits
    left, right, row, top = 8.0, WIDTH - 8.0, 34, 58
    higher = settings[0].higher
    place = scale(low, high, left, right) if higher else scale(high, low, left, right)
    bottom = top + row * len(settings)
    parts = [line(place(t), top - 14, place(t), bottom - 8, "grid") for t in ticks(low, high)]
    for index, (_, label, shape, style) in enumerate(LADDER):
        x, y = 8.0 + 125 * (index % 3), 10.0 + 17 * (index // 3)
        parts += [mark(x, y, shape, style, 4), text(x + 9, y + 4, label, "small")]
    for index, setting in enumerate(settings):
        y = top + row * index
        parts.append(text(0, y, setting.label, "label"))
        if setting.mean("plug_in") is not None:
            parts.append(
                text(WIDTH, y, show(setting.mean("plug_in"), setting.metric), "value", "end")
            )
        parts.append(line(left, y + 12, right, y + 12, "grid"))
        for key, label, shape, style in LADDER:
            if (value := setting.mean(key)) is not None:
                x = min(max(place(value), left), right)
                hint = f"{label} {show(value, setting.metric)}"
                parts.append(mark(x, y + 12, shape, style, 4.5, hint))
    parts += [
        text(place(t), bottom + 6, _tick(t, settings[0]), "small", "middle")
        for t in ticks(low, high)
    ]
    parts.append(text(right, bottom + 20, f"{settings[0].metric}, better →", "small", "end"))
    return picture(WIDTH, bottom + 26, parts, f"The scores of {len(settings)} settings")


def limits(settings: Sequence[Setting]) -> tuple[float, float]:
    """One range for the scores of all settings."""
    found = [v for s in settings for key, *_ in LADDER for v in s.values(key)]
    return room(found or [0.0, 1.0])


def curves(settings: Sequence[Setting]) -> str:
    """Training loss (solid) and evaluation loss (dashed) over steps, the mean over seeds."""
    drawn: list[tuple[str, str, list[tuple[float, float]]]] = []
    for index, setting in enumerate(settings[:6]):
        for key, dash in (("loss", ""), ("eval_loss", " dashed")):
            points = _mean_curve([row.get("history") or [] for row in setting.rows], key)
            if len(points) > 1:
                drawn.append((setting.label, f"curve c{index}{dash}", points))
    if not drawn:
        return ""
    names = list(dict.fromkeys(label for label, _, _ in drawn))
    left, right, top, bottom = 40, 344, 10, 170
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = sorted(y for _, _, points in drawn for _, y in points)
    low, high = room(ys)
    across, up = scale(0, max(xs), left, right), scale(low, high, bottom, top)
    parts = _axes(across, up, (0, max(xs)), (low, high), (left, right, top, bottom))
    parts.append(text(right, bottom + 26, "steps", "small", "end"))
    for _, style, points in drawn:
        parts.append(polyline([(across(x), up(y)) for x, y in points], style))
    for row, name in enumerate(names):
        index = [s.label for s in settings[:6]].index(name)
        y = bottom + 44 + 16 * row
        parts += [
            line(left, y - 4, left + 22, y - 4, f"curve c{index}"),
            text(left + 28, y, name, "label"),
        ]
    height = bottom + 40 + 16 * len(names)
    return picture(WIDTH, height, parts, "Loss in nats over tuning steps; dashed: evaluation")


def _mean_curve(
    histories: Sequence[Sequence[Mapping[str, Any]]], key: str
) -> list[tuple[float, float]]:
    """The mean over runs of one logged number at each step that all of them logged."""
    series = [
        {p["step"]: p[key] for p in h if p.get(key) is not None and "step" in p} for h in histories
    ]
    series = [s for s in series if s]
    if not series:
        return []
    steps = sorted(set.intersection(*(set(s) for s in series)))
    return [(float(t), sum(s[t] for s in series) / len(series)) for t in steps]


def protection(settings: Sequence[Setting]) -> str:
    """``"margin"`` where a healed emulator is known, else ``"gap"``."""
    return "margin" if any(s.mean("margin") is not None for s in settings) else "gap"


def frontier(settings: Sequence[Setting]) -> str:
    """Plug-in score against margin, with the line of settings that none other beats in both.

    Results without a healed emulator are drawn against their gap.

    Of many settings only those on the line are numbered; the others say their name when pointed at.
    """
    found: list[tuple[float, float, int]] = []
    figure = protection(settings)
    for index, setting in enumerate(settings):
        gap, plug = setting.mean(figure), setting.mean("plug_in")
        if gap is not None and plug is not None:
            found.append((gap, plug, index))
    if len(found) < 2:
        return ""
    first = settings[found[0][2]]
    sign = 1 if first.higher else -1
    left, right, top, bottom = 48, 346, 12, 190
    wide, tall = room([g for g, _, _ in found], 0.12), room([p for _, p, _ in found], 0.12)
    across = scale(*wide, left, right)
    up = scale(*(tall if first.higher else tall[::-1]), bottom, top)
    parts = _axes(across, up, wide, tall, (left, right, top, bottom), first)
    front = [p for p in found if not any(_beats(q, p, sign) for q in found)]
    parts.append(polyline([(across(g), up(p)) for g, p, _ in sorted(front)], "front"))
    listed: list[int] = []
    for gap, plug, index in found:
        style = "plug" if (gap, plug, index) in front else "model hollow"
        label = settings[index].label
        parts.append(mark(across(gap), up(plug), "circle", style, 5, label))
        if len(found) <= NUMBERED or (gap, plug, index) in front:
            below = 15 if len(listed) % 2 else -5  # neighbours on the line keep apart
            parts.append(text(across(gap) + 7, up(plug) + below, index + 1, "label"))
            listed.append(index)
    parts.append(text(right, bottom + 26, f"{OVER[figure]} →", "small", "end"))
    parts.append(text(left, bottom + 26, "↑ plug-in", "small"))
    for row, index in enumerate(listed):
        parts.append(
            text(8, bottom + 46 + 15 * row, f"{index + 1}  {settings[index].label}", "label")
        )
    return picture(WIDTH, bottom + 40 + 15 * len(listed), parts, f"Plug-in score against {figure}")


def _beats(one: tuple[float, float, int], other: tuple[float, float, int], sign: int) -> bool:
    at_least = one[0] >= other[0] and sign * (one[1] - other[1]) >= 0
    return at_least and one[:2] != other[:2]


def importance(name: str, values: Sequence[float]) -> str:
    """One bar for each block."""
    left, right, top, bottom = 40, 354, 10, 110
    low, high = min(0.0, *values), max(0.0, *values)
    up = scale(low, high or 1.0, bottom, top)
    parts = [line(left, up(t), right, up(t), "grid") for t in ticks(low, high, 3)]
    parts += [text(left - 5, up(t) + 4, short(t), "small", "end") for t in ticks(low, high, 3)]
    step = (right - left) / len(values)
    for index, value in enumerate(values):
        y, base = up(value), up(0.0)
        bar = (left + index * step + 0.1 * step, min(y, base), 0.8 * step, abs(y - base))
        parts.append(rectangle(*bar, "plug", f"block {index}: {short(value)}"))
    every = max(1, round(len(values) / 8))
    for index in range(0, len(values), every):
        parts.append(text(left + (index + 0.5) * step, bottom + 13, index, "small", "middle"))
    parts.append(text(right, bottom + 27, "block", "small", "end"))
    return picture(WIDTH, bottom + 32, parts, f"{name} of each block")


def blocks(total: int, adapter: Sequence[int], kept: Sequence[int]) -> str:
    """The model's blocks in a row: adapter, the emulator's middle blocks, and the rest."""
    step = min(24.0, (WIDTH - 2) / max(total, 1))
    parts = []
    for index in range(total):
        role = "adapter" if index in adapter else "kept" if index in kept else "gone"
        style = {"adapter": "block plug", "kept": "block emulator", "gone": "gone"}[role]
        parts.append(rectangle(1 + index * step, 2, step - 2, 16, style, f"block {index}: {role}"))
    middle = len(set(kept) - set(adapter))
    said = f"{total} blocks: {len(adapter)} adapter, {middle} of the middle in the emulator"
    return picture(WIDTH, 20, parts, said)


def _axes(
    across: Any, up: Any, wide: tuple[float, float], tall: tuple[float, float],
    frame: tuple[float, float, float, float], setting: Setting | None = None,
) -> list[str]:  # fmt: skip
    left, right, _, bottom = frame
    parts = [line(left, up(t), right, up(t), "grid") for t in ticks(*tall)]
    parts += [text(left - 5, up(t) + 4, _tick(t, setting), "small", "end") for t in ticks(*tall)]
    parts += [
        text(across(t), bottom + 13, _tick(t, setting), "small", "middle") for t in ticks(*wide)
    ]
    parts.append(line(left, bottom, right, bottom, "axis"))
    return parts


def _tick(value: float, setting: Setting | None) -> str:
    percent = setting is not None and show(0.0, setting.metric).endswith("%")
    return f"{short(100 * value)}%" if percent else short(value)
