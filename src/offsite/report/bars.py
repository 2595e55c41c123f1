"""The importance of blocks as a table for the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from offsite.errors import MissingExtraError, OffsiteError

PICTURES = (".png", ".svg", ".pdf")
PURPOSE = "The picture of importance"
BARS = " ▁▂▃▄▅▆▇█"
TITLES = {
    "influence": "block influence (1 - cosine)",
    "angular": "angular distance (over pi)",
    "leave_one_out": "rise of the loss without it",
    "learned": "learned by LayerReplace",
}


def importance_table(table: Mapping[str, Sequence[float]]) -> Table:
    """One row per block, one column with a bar per signal."""
    view = Table("block", *table, title="importance of every block")
    heights = {name: bars(values) for name, values in table.items()}
    for index in range(len(next(iter(table.values()), ()))):
        cells = (f"{heights[name][index]} {values[index]:.4g}" for name, values in table.items())
        view.add_row(str(index), *cells)
    return view


def bars(values: Sequence[float]) -> str:
    """One bar character per value, from the least to the greatest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


def check_picture(path: str | Path, purpose: str) -> None:
    """Refuse a picture that could not be drawn, before anything is computed for it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OffsiteError: the path does not end in ``.png``, ``.svg`` or ``.pdf``.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", purpose) from error
    if Path(path).suffix.lower() not in PICTURES:
        raise OffsiteError(
            f"'{path}' does not end like a picture; end it in {' or '.join(PICTURES)}."
        )


def draw_importance(table: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Bars over the blocks of the model, every signal on its own scale.

    Args:
        table: what :func:`offsite.compress.importance.importance` gave.
        path: where to write, by its suffix ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OffsiteError: no signal to draw, or another suffix.
    """
    check_picture(path, PURPOSE)
    from matplotlib.figure import Figure

    if not table:
        raise OffsiteError("There is no signal to draw; measure at least one.")
    figure = Figure(figsize=(7.5, 1.2 + 1.5 * len(table)), layout="constrained")
    strips = figure.subplots(len(table), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (signal, values) in zip(strips, table.items(), strict=True):
        axes.bar(range(len(values)), values)
        axes.set_title(TITLES.get(signal, signal), fontsize=9, loc="left")
        axes.axhline(0, color="black", linewidth=0.6)
    strips[-1].set_xlabel("block")
    figure.savefig(path, dpi=150)
