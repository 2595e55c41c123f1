"""Run a recipe on a cut model and return the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from offsite.compress.forecast import forecast
from offsite.compress.step import Context, Step, compress, recipe_identity
from offsite.exchange.manifest import Reach
from offsite.model.blocks import alias, get_blocks
from offsite.model.split import Adapter, Middle, emulator_layout, join
from offsite.owner.cutting import Cut, to_native
from offsite.owner.reach import check_reach
from offsite.owner.verbatim import verbatim_tensors
from offsite.tasks.data import identity_of, rows_of
from offsite.tasks.task import Task
from offsite.training.identity import Identity, processor_identity
from offsite.training.processes import main_process
from offsite.training.progress import say
from offsite.training.resume import same_run


@dataclass(frozen=True)
class Request:
    """What the owner asks an emulator to be; see :func:`offsite.make_offer`."""

    adapter: Adapter
    recipe: Sequence[Step]
    task: Task
    data: Any
    processor: Any
    seed: int
    dtype: torch.dtype | None
    reach: Reach
    work: Path | None
    resume: bool


@dataclass(frozen=True)
class Emulated:
    """An emulator between its adapter blocks.

    Attributes:
        model: the emulator, in the dtypes of the full model.
        middle: the middle blocks with their positions.
        adapter: positions of the adapter blocks in the emulator.
        verbatim: tensors of the middle with how many of their values leave unchanged.
        family: the model that the configuration alone describes, where it is known.
    """

    model: Any
    middle: Middle
    adapter: tuple[int, ...]
    verbatim: dict[str, int]
    family: Any = None


def emulate(cut: Cut, request: Request, device: torch.device) -> Emulated:
    """Make the emulator of a cut model: compute what is left of the recipe, or take the blocks.

    Raises:
        OffsiteError: a recipe that cannot work with this model or its data, or a reach of ``all``
            over harmonizers, which replace no single block.
    """
    made = compressed(cut, request, device) if cut.rest else kept_blocks(cut)
    to_native(made.model, cut)
    return made


def kept_blocks(cut: Cut) -> Emulated:
    """The emulator of a recipe that only chooses blocks: the model of those that were read."""
    middle = cut.middle
    verbatim = {
        f"{position}.{name}": tensor.numel()
        for position, block in zip(middle.positions, middle.blocks, strict=True)
        for name, tensor in block.named_parameters()
    }
    adapter = emulator_layout(cut.split, middle.positions)[1]
    return Emulated(cut.model, middle, adapter, verbatim, family=alias(cut.model))


def compressed(cut: Cut, request: Request, device: torch.device) -> Emulated:
    """The emulator that the recipe computes from the whole model."""
    full = cut.model.to(device).eval()
    rows = rows_of(request.task, request.data, request.processor, full, train=True)
    context = Context(
        full, cut.split, request.task, rows, request.seed, request.work, request.resume
    )
    for line in forecast(request.recipe, context) if main_process() else ():
        say(line)
    with same_run(request.work, lambda: identity(cut, request), request.resume):
        middle = compress(request.recipe, context, cut.middle)
    if request.reach == "all":
        check_reach(get_blocks(full), middle)
    full.requires_grad_(False)
    emulator, adapter = join(full, cut.split, middle)
    verbatim = verbatim_tensors(get_blocks(full), middle, cut.native)
    inside = {n: k for n, k in middle.kept.items() if int(n.split(".")[0]) in middle.positions}
    return Emulated(emulator, replace(middle, kept=inside), adapter, verbatim)


def identity(cut: Cut, request: Request) -> Identity:
    """What a resumed run must have in common with the one that was interrupted."""
    return Identity.of(
        model=cut.fingerprint,
        adapter=cut.split.adapter,
        recipe=recipe_identity(request.recipe),
        task=request.task.identity(),
        data=identity_of(request.data),
        processor=processor_identity(request.processor),
        seed=request.seed,
        dtype=str(request.dtype),
    )
