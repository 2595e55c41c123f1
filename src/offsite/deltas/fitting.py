"""Find the methods that work on a model, without reading a weight."""

from __future__ import annotations

import warnings

from offsite.deltas import METHODS
from offsite.deltas.method import Method
from offsite.errors import OffsiteError
from offsite.exchange.side import GivenSides, attach_side, read_sides
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import example_split, parse_adapter


def misfits(
    model: str, auto_class: str, adapter: str, side: GivenSides | None = None
) -> dict[str, str | None]:
    """For every method: why it cannot tune some blocks of a model, or None where it can.

    Each is attached, with its defaults, to the model on the meta device.

    Args:
        model: folder or hub name.
        adapter: a rule such as ``ends:2,2``; where importance is not known yet, the first blocks.
        side: groups of side tensors that offers will bring.

    Raises:
        OffsiteError: no such model, adapter or group.
    """
    reasons: dict[str, str | None] = {}
    checkpoint, groups = Checkpoint.of(model, auto_class), read_sides(side or {})
    for kind, build in METHODS.items():
        method: Method = build()
        skeleton = checkpoint.outline
        total = len(get_blocks(skeleton))
        blocks = example_split(parse_adapter(adapter), total).adapter
        for group in groups:
            if group.name == method.side:
                attach_side(skeleton, group)
        try:
            with warnings.catch_warnings(action="ignore"):  # peft's, of a model without weights
                method.attach(skeleton, blocks)
            reasons[kind] = None
        except OffsiteError as error:
            reasons[kind] = str(error)
    return reasons
