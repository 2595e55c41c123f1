"""The bound on each tensor's change, checked while tuning.

The owner refuses a delta that exceeds the bound, so the tuner is warned after a tenth of the steps.
A check merges a copy of the adapter blocks on the CPU, which takes as long as a hundred steps on a
GPU, so a run of less than a minute is checked once, at its end.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from offsite.exchange.bounds import OutOfBounds, check_change
from offsite.exchange.manifest import Reach
from offsite.exchange.offer import Offer
from offsite.training.devices import fork_generators
from offsite.training.processes import main_process
from offsite.training.progress import say
from offsite.tuner.preparing import Prepared, private_copy, to_offer_dtypes

SOON = 60.0  # seconds of tuning before the first check


class Limits(TrainerCallback):  # type: ignore[misc]
    """Says once that the owner would refuse the delta as it is.

    Two kinds of delta are not checked: methods that do not merge change no tensor of the model,
    and only the owner can merge a delta of reach ``all``.
    """

    def __init__(self, ready: Prepared, offer: Offer, reach: Reach) -> None:
        self.ready, self.offer = ready, offer
        self.began = 0.0
        merges = ready.attached.method.merges and reach == "adapter"
        self.pending = merges and main_process()  # what trains is the same in all processes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        early = time.monotonic() - self.began < SOON
        if state.global_step in (state.max_steps // 10, state.max_steps // 2) and not early:
            self.check()

    def check(self) -> None:
        """Merge the delta so far into a copy of the adapter blocks and check the change."""
        if not self.pending:
            return
        method, blocks = self.ready.attached.method, self.offer.manifest.adapter
        with fork_generators():  # attaching draws numbers that training needs
            copy = method.attach(private_copy(self.offer), blocks)
        copy.load(to_offer_dtypes(self.ready.attached.tensors(), self.offer))
        try:
            check_change(self.offer.model, copy.merge())
        except OutOfBounds as error:
            self.pending = False
            say(f"The owner of the offer would refuse this delta. {error}")
