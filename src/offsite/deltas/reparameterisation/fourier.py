"""Updates with few frequencies through peft (FourierFT; Gao et al., arXiv 2405.03003)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, fan_in_fan_out, target_names
from offsite.errors import check_seed, require


@dataclass(frozen=True)
class FourierFT(ThroughPeft):
    """``W + scaling * real(ifft2(F))`` with ``F`` nonzero at ``frequencies`` random places.

    The delta holds the coefficients of each layer, as a peft adapter; peft draws the places from
    ``seed``. They are zero at the start, so an untrained delta changes nothing; merges.

    Attributes:
        frequencies: coefficients of each layer.
        scaling: of the update; the paper's default for language models is 300.
        seed: of the places.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    frequencies: int = 500
    scaling: float = 300.0
    seed: int = 0
    targets: str = "all"

    kind: ClassVar[str] = "fourier"
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "a fixed count of parameters for each layer, whatever its size"

    def __post_init__(self) -> None:
        usable = self.frequencies >= 1
        require(usable, f"frequencies={self.frequencies} is not usable; use 1 or more.")
        check_seed(self.seed)

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import FourierFTConfig

        names = target_names(model, blocks, self.targets)
        smallest = min(model.get_submodule(name).weight.numel() for name in names)  # type: ignore[operator]
        return FourierFTConfig(
            n_frequency=min(self.frequencies, smallest),
            scaling=self.scaling,
            random_loc_seed=self.seed,
            init_weights=True,
            target_modules=names,
            fan_in_fan_out=fan_in_fan_out(model, names),
        )
