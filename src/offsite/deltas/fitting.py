"""Which methods can work on a model, found without reading a weight."""

from __future__ import annotations

import warnings
from pathlib import Path

from offsite.deltas import METHODS
from offsite.deltas.method import Method
from offsite.errors import OffsiteError
from offsite.exchange.prompt_decoder import give_decoder
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import example_split, parse_adapter


def misfits(
    model: str, auto_class: str, adapter: str, prompt_decoder: Path | None = None
) -> dict[str, str | None]:
    """For every method: why it cannot tune some blocks of a model, or None where it can.

    Each is attached, with its defaults, to the model on the meta device.

    Args:
        model: folder or hub name.
        adapter: a rule such as ``ends:2,2``; where importance is not known yet, the first blocks.

    Raises:
        OffsiteError: no such model, adapter or decoder.
    """
    reasons: dict[str, str | None] = {}
    checkpoint = Checkpoint.of(model, auto_class)
    for kind, build in METHODS.items():
        method: Method = build()
        skeleton = checkpoint.outline
        total = len(get_blocks(skeleton))
        blocks = example_split(parse_adapter(adapter), total).adapter
        if prompt_decoder is not None and method.side:
            give_decoder(skeleton, prompt_decoder)
        try:
            with warnings.catch_warnings(action="ignore"):  # peft's, of a model without weights
                method.attach(skeleton, blocks)
            reasons[kind] = None
        except OffsiteError as error:
            reasons[kind] = str(error)
    return reasons
