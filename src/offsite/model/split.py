"""Divide a model into adapter and middle blocks, and join them again.

The *adapter* blocks are tuned; they may be any set. The *middle* is every other block, and an
emulator has a :class:`Middle` in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import nn

from offsite.errors import OffsiteError
from offsite.model.blocks import assemble, get_blocks

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Split:
    """The adapter blocks of a model of ``total`` blocks, as ascending positions."""

    adapter: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        bad = [i for i in self.adapter if not 0 <= i < self.total]
        if bad:
            raise OffsiteError(
                f"Adapter block {bad[0]} is out of range: the model has {self.total} blocks, "
                f"so use positions 0 to {self.total - 1}."
            )
        if len(set(self.adapter)) < len(self.adapter):
            raise OffsiteError(
                f"The adapter names a block twice: {list(self.adapter)}; name each once."
            )
        if not self.adapter or len(self.adapter) == self.total:
            raise OffsiteError(
                f"An adapter of {len(self.adapter)} of {self.total} blocks leaves no "
                f"{'middle' if self.adapter else 'adapter'}; choose 1 to {self.total - 1}."
            )
        object.__setattr__(self, "adapter", tuple(sorted(self.adapter)))

    @property
    def middle(self) -> tuple[int, ...]:
        """The positions of the middle blocks, ascending."""
        return tuple(i for i in range(self.total) if i not in self.adapter)

    @property
    def segments(self) -> tuple[tuple[int, ...], ...]:
        """The middle as maximal runs of consecutive positions (one run for a classic adapter)."""
        runs: list[list[int]] = []
        for i in self.middle:
            if runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            else:
                runs.append([i])
        return tuple(tuple(run) for run in runs)


@dataclass(frozen=True)
class ends:
    """The classic adapter: the first ``first`` and the last ``last`` blocks."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"ends:{self.first},{self.last}"

    def __call__(self, total: int, scores: Sequence[float] | None = None) -> Split:
        """The split of a model of ``total`` blocks.

        Raises:
            OffsiteError: counts that are negative or leave no middle.
        """
        if self.first < 0 or self.last < 0:
            raise OffsiteError(f"'{self}' has a negative count; use two counts from 0.")
        if self.first + self.last >= total:
            raise OffsiteError(
                f"'{self}' takes {self.first + self.last} of {total} blocks and leaves no middle; "
                f"take at most {total - 1} in all."
            )
        return Split((*range(self.first), *range(total - self.last, total)), total)


@dataclass(frozen=True)
class Positions:
    """An adapter of the blocks at these positions."""

    at: tuple[int, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.at))

    def __call__(self, total: int, scores: Sequence[float] | None = None) -> Split:
        """The split of a model of ``total`` blocks."""
        return Split(self.at, total)


@dataclass(frozen=True)
class learned:
    """An adapter of the ``count`` most important blocks, as ScaleOT chooses them."""

    count: int

    def __str__(self) -> str:
        return f"learned:{self.count}"

    def __call__(self, total: int, scores: Sequence[float] | None = None) -> Split:
        """The split of a model of ``total`` blocks by ``scores``, one for each block.

        Raises:
            OffsiteError: no scores, those of another number of blocks, or an impossible count.
        """
        if scores is None or len(scores) != total:
            raise OffsiteError(
                f"'{self}' needs the importance of {total} blocks; give --learned with the folder "
                "of a LayerReplace pass on this model "
                "('offsite importance MODEL --data ... --learn FOLDER')."
            )
        return Split(most_important(scores, self.count), total)


AdapterRule = ends | Positions | learned
Adapter = AdapterRule | Callable[[int], Split] | Sequence[int]


def most_important(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The ``count`` positions of highest score, ascending; of equal ones the earlier.

    Raises:
        OffsiteError: an adapter of no block or of all.
    """
    if not 1 <= count < len(scores):
        raise OffsiteError(
            f"An adapter of {count} of {len(scores)} blocks is impossible; choose 1 to "
            f"{len(scores) - 1}."
        )
    ranked = sorted(range(len(scores)), key=lambda p: (-scores[p], p))
    return tuple(sorted(ranked[:count]))


def make_split(adapter: Adapter, total: int) -> Split:
    """The split of a model of ``total`` blocks by a rule (``ends(2, 2)``) or explicit positions."""
    return adapter(total) if callable(adapter) else Split(tuple(adapter), total)


def example_split(rule: AdapterRule, total: int) -> Split:
    """A split of the rule's size where importance is not known yet: then of the first blocks."""
    return rule(total, range(total, 0, -1))


def parse_adapter(text: str) -> AdapterRule:
    """Read the command line's ``ends:2,2``, ``0,5,18,23`` or ``learned:4``.

    Raises:
        OffsiteError: any other form.
    """
    kind, _, rest = text.rpartition(":")
    try:
        numbers = tuple(int(part) for part in rest.split(","))
    except ValueError:
        numbers = ()
    if kind == "ends" and len(numbers) == 2:
        return ends(*numbers)
    if kind == "learned" and len(numbers) == 1:
        return learned(*numbers)
    if kind == "" and numbers:
        return Positions(numbers)
    raise OffsiteError(
        f"'{text}' is not an adapter; write ends:FIRST,LAST, block positions such as 0,5,23, or "
        "learned:COUNT for the most important blocks."
    )


@dataclass(frozen=True)
class Kept:
    """The outputs (rows) and inputs (columns) of a linear layer that a narrower one still has.

    Indices into the layer of the full model, ascending; None means all of them.
    """

    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Middle:
    """The emulator's middle blocks and their positions in the full model.

    Attributes:
        blocks: the standing modules, in order, each mapping hidden states to hidden states of the
            same size. They may share parameters with the full model and with each other; whoever
            changes a parameter replaces it by a copy first.
        positions: for each, its position in the full model, ascending.
        kept: for each linear layer that was made narrower, what is left of it, under
            ``position.name`` with the layer's name inside its block.
    """

    blocks: tuple[nn.Module, ...]
    positions: tuple[int, ...]
    kept: Mapping[str, Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.blocks) == len(self.positions)
        assert list(self.positions) == sorted(set(self.positions))

    def between(self, segment: Sequence[int]) -> tuple[nn.Module, ...]:
        """The standing blocks whose positions lie in ``segment``."""
        return tuple(b for b, p in zip(self.blocks, self.positions, strict=True) if p in segment)

    def at(self, positions: Sequence[int]) -> Middle:
        """Only the blocks at ``positions`` (ascending)."""
        return replace(self, blocks=self.between(positions), positions=tuple(positions))


def whole_middle(model: nn.Module, split: Split) -> Middle:
    """The untouched middle of a model."""
    blocks = get_blocks(model)
    return Middle(tuple(blocks[i] for i in split.middle), split.middle)


def emulator_layout(
    split: Split, positions: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Full-model positions in emulator order, and where the adapter blocks fall among them."""
    order = tuple(sorted((*split.adapter, *positions)))
    return order, tuple(i for i, position in enumerate(order) if position in split.adapter)


def join(model: Module, split: Split, middle: Middle) -> tuple[Module, tuple[int, ...]]:
    """Put the adapter blocks back around a middle.

    Returns:
        A model of the same family (sharing tensors with ``model``), and the positions of the
        adapter blocks in it. With the whole middle its logits are bit-equal to the model's.
    """
    order, adapter = emulator_layout(split, middle.positions)
    full, standing = get_blocks(model), dict(zip(middle.positions, middle.blocks, strict=True))
    blocks = [full[p] if p in split.adapter else standing[p] for p in order]
    return assemble(model, blocks, order), adapter
