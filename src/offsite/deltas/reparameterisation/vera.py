"""Vectors around shared random projections through peft (VeRA; arXiv 2310.11454)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, fan_in_fan_out, target_names
from offsite.errors import check_seed, require

LARGEST_RANK = 4096


@dataclass(frozen=True)
class VeRA(ThroughPeft):
    """``W + diag(b) B diag(d) A`` with random ``A`` and ``B`` that all layers share.

    The delta holds ``vera_lambda_b`` (outputs,) and ``vera_lambda_d`` (rank,) of each layer, as a
    peft adapter. It does not hold ``A`` and ``B``: peft draws them from ``seed`` on the CPU at the
    size of the largest layer of the adapter, so emulator and full model agree. Both parties must
    run the same release of torch, because its random stream may change between releases. ``b`` is
    zero at the start, so an untrained delta changes nothing; merges.

    Attributes:
        rank: rank of the shared projections, at most 4096; larger than LoRA's, as they are not
            trained. It is bounded because the model owner draws them again.
        seed: of the shared projections.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    rank: int = 64
    seed: int = 0
    targets: str = "all"

    kind: ClassVar[str] = "vera"
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "LoRA's form with only vectors to send"

    def __post_init__(self) -> None:
        require(
            1 <= self.rank <= LARGEST_RANK,
            f"A VeRA rank of {self.rank} is not usable; use 1 to {LARGEST_RANK}.",
        )
        check_seed(self.seed)

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import VeraConfig

        names = target_names(model, blocks, self.targets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Specified to not")
            return VeraConfig(
                r=self.rank,
                projection_prng_key=self.seed,
                save_projection=False,
                target_modules=names,
                fan_in_fan_out=fan_in_fan_out(model, names),
            )
