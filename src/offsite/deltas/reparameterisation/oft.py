"""Rotations of the weights through peft (OFT; Qiu et al., arXiv 2306.07280)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, target_names
from offsite.errors import require


@dataclass(frozen=True)
class OFT(ThroughPeft):
    """``W R`` with ``R`` block-diagonal and nearly orthogonal: angles between neurons are kept.

    ``R`` is the Cayley map of its generator by peft's series of five terms, so it leaves
    orthogonality as the generator grows.

    The delta holds the skew-symmetric generators of each rotation, as a peft adapter. They are zero
    at the start, so an untrained delta changes nothing; merges. Not for GPT-2's ``Conv1D``.

    Attributes:
        block_size: size of the rotations; it must divide the inputs of every layer.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    block_size: int = 16
    targets: str = "all"

    kind: ClassVar[str] = "oft"
    lr: ClassVar[float] = 3e-3
    when: ClassVar[str] = "a change that keeps the norms of the weights"

    def __post_init__(self) -> None:
        require(
            self.block_size >= 2, f"OFT needs a block_size of at least 2, not {self.block_size}."
        )

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import OFTConfig

        names = target_names(model, blocks, self.targets, refuse_conv1d="oft")
        widths = {int(model.get_submodule(name).in_features) for name in names}  # type: ignore[arg-type]
        odd = sorted(width for width in widths if width % self.block_size)
        require(
            not odd,
            f"A block_size of {self.block_size} does not divide {odd[:1]} inputs of a layer; "
            "choose a common divisor of the layers' inputs.",
        )
        return OFTConfig(r=0, oft_block_size=self.block_size, target_modules=names)
