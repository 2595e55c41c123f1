"""Check by its score whether an emulator is good enough to tune through."""

from __future__ import annotations

import math
from typing import Any

from offsite.model.blocks import block_config
from offsite.tasks.task import Evaluation

NEAR_GUESSING = 0.85


def judge_emulator(model: Any, score: Evaluation | None) -> str | None:
    """A warning where an emulator predicts hardly better than guessing; None elsewhere.

    The line is drawn at 85% of the loss of uniform guessing over the vocabulary, ``ln(size)`` in
    nats per token. Measured on SmolLM2-135M (49,152 tokens, 10.8 nats): tuning through emulators
    of 9.8 and 13.8 nats ended below the model's zero-shot score, through one of 7.7 it recovered
    37%.
    """
    size = getattr(block_config(model), "vocab_size", None)
    if score is None or score.metric != "loss" or not size:
        return None
    guessing = math.log(size)
    if score.value < NEAR_GUESSING * guessing:
        return None
    return (
        f"This emulator is hardly better than guessing ({score.value:.2f} against "
        f"{guessing:.2f} nats per token). A model tuned through it may end below the untuned one; "
        "keep more blocks, choose them by influence, or align them on your own data "
        "(--recipe influence-align)."
    )
