"""Which of the six scores a path stands for, and the model to score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offsite.errors import OffsiteError
from offsite.exchange.file_set import MANIFEST
from offsite.exchange.ledger import APART, MERGED
from offsite.exchange.offer import Offer
from offsite.model.checkpoint import load_model
from offsite.model.configuration import load_config
from offsite.model.processor import load_processor
from offsite.owner.serving import load_plugged
from offsite.tasks.task import Task


@dataclass(frozen=True)
class Scored:
    """A model to score: under which key, with which processor."""

    key: str
    model: Any
    processor: Any


def load_scored(
    path: str,
    task: Task,
    dtype: torch.dtype | None,
    base: str | None,
    before: Callable[[Any, Any], None] = lambda processor, config: None,
) -> Scored:
    """Load what a path holds: an offer, a merged or attached plug-in, or a full model.

    Args:
        base: the full model that an attached plug-in runs on.
        before: called with the processor and the configuration, before weights are read.

    Raises:
        OffsiteError: an adapter without ``base``, or nothing that can be scored.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        offer = Offer.load(folder, dtype=dtype, before=before)
        return Scored("emulator_zero_shot", offer.model, offer.processor)
    if (folder / APART).is_file():
        if base is None:
            raise OffsiteError(
                f"'{path}' is an adapter; name the full model it runs on with --base."
            )
        processor = load_processor(base, task.name)
        before(processor, load_config(base))
        model = load_plugged(load_model(base, task.auto_class), folder)
        return Scored("plug_in", model.to(dtype), processor)
    config, processor = load_config(path), load_processor(path, task.name)
    before(processor, config)
    model = load_model(path, task.auto_class, dtype=dtype)
    key = "plug_in" if (folder / MERGED).is_file() else "zero_shot"
    return Scored(key, model, processor)
