"""Train LayerReplace (ScaleOT, arXiv 2412.09812), with checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from offsite.errors import require


@dataclass(frozen=True)
class Training:
    """How to learn scores and harmonizers.

    Attributes:
        steps: alternations of one harmonizer step and one score update.
        rank: inner width of a harmonizer.
        lr: learning rate of AdamW on the harmonizers.
        eta: learning rate of the scores.
        batch_size: rows of calibration data per step and per score update.
        lm_weight, kd_weight: of the task's loss and of the hidden-state error, in the harmonizers'
            loss; the paper's is the first alone. The second is the mean over replaced blocks of
            ``mean(((T - S) / rms(T))^2)``, T the hidden states after the block in the real model
            and S those after the harmonizer in the sampled one, batches alike.
        save_every: steps between resumable states, where a work folder is given.
    """

    steps: int = 1000
    rank: int = 64
    lr: float = 1e-4
    eta: float = 1.0
    batch_size: int = 8
    lm_weight: float = 1.0
    kd_weight: float = 0.0
    save_every: int = 100

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"LayerReplace cannot run {self.steps} steps; use 1 or more.")
        require(self.rank >= 1, f"A harmonizer cannot have rank {self.rank}; use 1 or more.")
        require(self.batch_size >= 1, f"A batch cannot have {self.batch_size} rows; use 1 or more.")
        require(0 < self.lr < 100, f"A learning rate of {self.lr} is not usable; try 1e-4.")
        require(
            0 < self.eta < math.inf
            and min(self.lm_weight, self.kd_weight) >= 0
            and 0 < self.lm_weight + self.kd_weight < math.inf,
            "LayerReplace needs an eta above 0, loss weights of 0 or more, and one of them above "
            "0.",
        )
