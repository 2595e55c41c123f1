"""SVG from strings: shapes, and axes with round numbers. Colours are classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

Scale = Callable[[float], float]


def picture(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """A whole picture in its own coordinates; the page scales it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: object, style: str = "", anchor: str = "start") -> str:
    """Words at a baseline."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(str(words))}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """One straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" class="{style}"/>'


def rectangle(x: float, y: float, width: float, height: float, style: str, hint: str = "") -> str:
    """A rectangle, with a hint shown when pointed at."""
    inside = f"<title>{escape(hint)}</title>" if hint else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" '
        f'class="{style}">{inside}</rect>'
    )


def mark(x: float, y: float, shape: str, style: str, size: float = 5, hint: str = "") -> str:
    """A circle, square or diamond centred at a point."""
    inside = f"<title>{escape(hint)}</title>" if hint else ""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" class="{style}">{inside}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape == "diamond" else ""
    side = 1.8 * size
    return (
        f'<rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" '
        f'height="{side:.1f}" class="{style}"{turn}>{inside}</rect>'
    )


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """A linear map of ``low..high`` to ``start..end``; one value alone goes to the middle."""
    width = high - low
    if not width:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / width * (end - start)


def room(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of values with a little room at both ends."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers within a range."""
    rough = (high - low) / max(count, 1)
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few characters."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2g}"
    return f"{value:.4g}"
