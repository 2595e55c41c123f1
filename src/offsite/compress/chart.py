"""The importance of every block as a picture, one strip per signal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from offsite.errors import MissingExtraError, OffsiteError

LABELS = {
    "influence": "block influence (1 - cosine)",
    "angular": "angular distance (over pi)",
    "leave_one_out": "loss without it (nats)",
}


def draw_importance(
    table: Mapping[str, Sequence[float]], path: str | Path, *, adapter: Collection[int] = ()
) -> None:
    """Bars over the positions of the model, every signal on its own scale.

    Args:
        table: what :func:`offsite.compress.importance.importance` gave.
        path: where to write, by its suffix ``.png``, ``.svg`` or ``.pdf``.
        adapter: positions to set off in another colour.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OffsiteError: no signal to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "The picture of importance") from error
    if not table:
        raise OffsiteError("There is no signal to draw; measure at least one.")
    figure = Figure(figsize=(7.5, 1.2 + 1.5 * len(table)), layout="constrained")
    strips = figure.subplots(len(table), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (signal, scores) in zip(strips, table.items(), strict=True):
        colours = ["tab:orange" if p in adapter else "tab:blue" for p in range(len(scores))]
        axes.bar(range(len(scores)), scores, color=colours)
        axes.set_title(LABELS.get(signal, signal), fontsize=9, loc="left")
        axes.axhline(0, color="black", linewidth=0.6)
    strips[-1].set_xlabel("block" + (" (adapter in orange)" if adapter else ""))
    figure.savefig(path, dpi=150)
