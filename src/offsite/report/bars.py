"""The importance of blocks, as a table for the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from offsite.errors import MissingExtraError

BARS = " ▁▂▃▄▅▆▇█"


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


def draw_importance(table: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """A small bar chart per signal.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "The picture of importance") from error
    figure = Figure(figsize=(8, 1.8 * len(table)), layout="constrained")
    axes = figure.subplots(len(table), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, table.items(), strict=True):
        axis.bar(range(len(values)), values)
        axis.set_ylabel(name)
    axes[-1].set_xlabel("block")
    figure.savefig(path, dpi=150)
