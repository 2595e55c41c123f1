"""ScaleOT (arXiv 2412.09812): emulators of any size from one pass of LayerReplace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from offsite.compress.crash import layer_types
from offsite.compress.rank import Rank
from offsite.compress.scaleot.learned import Learned
from offsite.compress.scaleot.learning import SAMPLES, learn
from offsite.compress.scaleot.training import Training
from offsite.compress.step import Context, Needs, Pass, Step
from offsite.errors import OffsiteError, require
from offsite.model.blocks import alias
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import (
    AdapterRule,
    Middle,
    Positions,
    emulator_layout,
    ends,
    learned,
    most_important,
)


@dataclass(frozen=True)
class LayerReplace:
    """Replace the least important share ``alpha`` of the middle blocks by harmonizers.

    ``learned`` names the folder of an earlier pass (:meth:`Learned.save`). Without it the pass runs
    first, resumable in the owner's work folder; the other fields are those of
    :class:`~offsite.compress.scaleot.learning.Training`.

    A harmonizer keeps no key/value cache, so the first block of the emulator always stays, and so
    does the first of every kind of attention where a family has several. With ``alpha`` near 1
    fewer blocks may be replaced than asked.
    """

    alpha: float
    learned: str | None = None
    steps: int = 1000
    rank: int = 64
    lr: float = 1e-4
    eta: float = 1.0
    batch_size: int = 8
    lm_weight: float = 1.0
    kd_weight: float = 0.0

    kind: ClassVar[str] = "layer_replace"

    def __post_init__(self) -> None:
        require(
            0 <= self.alpha <= 1,
            f"An alpha of {self.alpha} is not a share of the blocks; use 0 to 1.",
        )
        _ = self.training  # refuses its own

    @property
    def needs(self) -> Needs:
        """Data and a work folder to learn in, unless it was learned before."""
        own = self.learned is None and self.alpha > 0
        rows = (1 + SAMPLES) * self.steps * self.batch_size if own else 0
        own_pass = None
        if self.learned is None:
            own_pass = Pass(self.training, lambda folder: replace(self, learned=folder))
        return Needs(
            data=own,
            rows=rows,
            passes=0.75,
            work=own,
            learned=self.learned,
            own_pass=own_pass,
        )

    @property
    def training(self) -> Training:
        """How the pass runs that this step makes for itself."""
        own = {field.name for field in fields(Training)} & {field.name for field in fields(self)}
        return Training(**{name: getattr(self, name) for name in own})

    def __call__(self, middle: Middle, context: Context) -> Middle:
        count = round(self.alpha * len(middle.positions))
        if count == 0:
            return middle
        if self.learned is not None:
            result = Learned.load(self.learned, context.model)
        else:
            result = learn(context, self.training)
        chosen = least_important(result.scores, replaceable(middle, context), count)
        harmonizers = result.harmonizers.to(context.device)
        blocks = (
            alias(harmonizers[position]) if position in chosen else block
            for position, block in zip(middle.positions, middle.blocks, strict=True)
        )
        return replace(middle, blocks=tuple(blocks))


def replaceable(middle: Middle, context: Context) -> tuple[int, ...]:
    """The standing positions at which a block without a key/value cache is harmless."""
    order, types = emulator_layout(context.split, middle.positions)[0], layer_types(context)
    first = {types[position]: position for position in reversed(order)}
    return tuple(p for p in middle.positions if first[types[p]] != p)


def least_important(
    scores: Sequence[float], positions: Sequence[int], count: int
) -> tuple[int, ...]:
    """The ``count`` positions of lowest score, ascending; of equal ones the later."""
    return tuple(sorted(sorted(positions, key=lambda p: (scores[p], -p))[:count]))


def resolve_adapter(
    rule: AdapterRule, folder: str | None, checkpoint: Checkpoint
) -> ends | Positions:
    """``learned(4)`` as the positions of the four most important blocks; other rules as they are.

    Args:
        folder: of a LayerReplace pass on this model.

    Raises:
        OffsiteError: no such folder, one of another model, or an impossible count.
    """
    if not isinstance(rule, learned):
        return rule
    scores = None
    if folder is not None:
        found = Learned.load(folder)
        if found.fingerprint != checkpoint.fingerprint:
            raise OffsiteError(
                f"'{folder}' was learned on another model; learn scores and harmonizers afresh."
            )
        scores = found.scores
    return Positions(rule(checkpoint.total, scores).adapter)


def scaleot(
    folder: str, scores: Sequence[float], count: int, alpha: float, beta: float
) -> tuple[tuple[int, ...], list[Step]]:
    """The whole method from its three values.

    Args:
        folder: of the LayerReplace pass.
        scores: its scores, one per block of the model.
        count: how many blocks are adapter: the most important ones.
        alpha: share of the others that harmonizers replace: the least important ones.
        beta: share of the rank removed from the attention projections of the rest.

    Returns:
        The adapter positions, for ``make_offer(adapter=...)``, and the recipe.

    Raises:
        OffsiteError: an adapter of no block or of all.
    """
    adapter = most_important(scores, count)
    recipe: list[Step] = [LayerReplace(alpha=alpha, learned=folder)]
    if beta:
        recipe.append(Rank(beta=beta))
    return adapter, recipe
