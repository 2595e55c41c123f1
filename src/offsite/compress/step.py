"""A compression step: a frozen dataclass that maps a middle to a lighter middle.

A recipe is an ordered list of steps. Steps never write into a tensor they were given: the middle
may share tensors with the owner's model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from offsite.codec import to_json
from offsite.compress.scaleot.training import Training
from offsite.errors import OffsiteError
from offsite.model.split import Middle, Split, whole_middle
from offsite.tasks.source import Source
from offsite.tasks.task import Task
from offsite.training.resume import has_state


@dataclass(frozen=True)
class Context:
    """What a step may use besides the middle.

    Attributes:
        model: the owner's full model, frozen, in evaluation mode, on the device to compute on.
        split: which of its blocks are adapter.
        task: how to make batches and losses of the calibration data.
        data: the owner's calibration data set, or None.
        seed: for every random choice.
        work: folder where a long step keeps what it needs to resume, or None.
        resume: continue from what ``work`` holds.
    """

    model: nn.Module
    split: Split
    task: Task | None = None
    data: Dataset[Any] | None = None
    seed: int = 0
    work: Path | None = None
    resume: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def of_step(self, index: int) -> Context:
        """The context of one step: with a work folder of its own, resumed if it had begun."""
        if self.work is None:
            return self
        work = self.work / str(index)
        return replace(self, work=work, resume=self.resume and has_state(work))

    def batches(self, count: int, size: int, seed: int | None = None) -> Iterator[dict[str, Any]]:
        """``count`` random calibration batches of ``size`` rows, on the model's device.

        Raises:
            OffsiteError: the owner gave no calibration data.
        """
        if self.data is None or self.task is None:
            raise OffsiteError(
                "This recipe needs calibration data of the owner; give it with --data."
            )
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        sampler = RandomSampler(
            self.data,  # type: ignore[arg-type]
            replacement=True,
            num_samples=count * size,
            generator=generator,
        )
        for batch in DataLoader(
            self.data, batch_size=size, sampler=sampler, collate_fn=self.task.collate
        ):
            yield {key: value.to(self.device) for key, value in batch.items()}


@dataclass(frozen=True)
class Pass:
    """A pass of LayerReplace that a step runs for itself; steps that train alike may share one.

    Attributes:
        training: how it runs.
        given: the same step, reading a finished pass from a folder.
    """

    training: Training
    given: Callable[[str], Step]


@dataclass(frozen=True)
class Needs:
    """What a step asks of the owner besides the model.

    Attributes:
        data: it looks at calibration data.
        rows: how many rows of it, counting those it looks at again.
        bounded: it looks at no more rows than the data has.
        passes: forward passes of the whole model for each of them; a backward pass counts two.
        every_block: as many passes again for every block of the model.
        decomposes: it takes the singular values of the linear layers of every middle block whose
            names this accepts.
        work: it takes long, and keeps in a work folder what it needs to be resumed.
        learned: the folder of an earlier LayerReplace pass that it reads.
        own_pass: the LayerReplace pass that it runs because it reads none.
        plan: where a step chooses blocks by position alone, ``plan(positions, seed)`` gives those
            that stay, before any weight is read; None from it means that weights are needed.
    """

    data: bool = False
    rows: int = 0
    bounded: bool = False
    passes: float = 1.0
    every_block: bool = False
    decomposes: Callable[[str], bool] | None = None
    work: bool = False
    learned: str | None = None
    own_pass: Pass | None = None
    plan: Callable[[Sequence[int], int], tuple[int, ...] | None] | None = None


class Step(Protocol):
    """One compression step: what it needs, and what it makes of a middle."""

    kind: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    def __call__(self, middle: Middle, context: Context) -> Middle: ...


def compress(recipe: Sequence[Step], context: Context, middle: Middle | None = None) -> Middle:
    """Apply the steps of a recipe in order, by default to the model's whole middle."""
    middle = middle or whole_middle(context.model, context.split)
    for index, step in enumerate(recipe):
        middle = step(middle, context.of_step(index))
    return middle


def plan(
    recipe: Sequence[Step], positions: Sequence[int], seed: int
) -> tuple[tuple[int, ...], tuple[Step, ...]]:
    """The positions left after the leading steps that need no weights, and the other steps."""
    chosen = tuple(positions)
    for index, step in enumerate(recipe):
        planned = None if step.needs.plan is None else step.needs.plan(chosen, seed)
        if planned is None:
            return chosen, tuple(recipe[index:])
        chosen = planned
    return chosen, ()


def check_data(recipe: Sequence[Step], given: object) -> None:
    """Refuse a recipe that needs calibration data where there is none.

    Raises:
        OffsiteError: naming the step.
    """
    for step in recipe:
        if step.needs.data and given is None:
            raise OffsiteError(
                f"The step '{step.kind}' needs calibration data of the owner; give it with "
                "--data, or choose a recipe without it."
            )


def recipe_identity(recipe: Sequence[Step]) -> list[dict[str, Any]]:
    """All that a recipe does, as JSON; the folder of an earlier pass counts by what it holds."""
    steps = [to_json(step) for step in recipe]
    for step in steps:
        if step.get("learned"):
            step["learned"] = Source.of(step["learned"]).identity()
    return steps
