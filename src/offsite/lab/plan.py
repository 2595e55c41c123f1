"""What the lab is asked to run, and what it answers: plans, recipes and rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from offsite.codec import check_seed
from offsite.compress import parse_recipe
from offsite.compress.scaleot.learning import Training
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.step import Step, recipe_identity
from offsite.compress.step import plan as positions
from offsite.deltas import parse_method
from offsite.deltas.method import Method
from offsite.errors import OffsiteError
from offsite.exchange.manifest import Reach, parse_reach
from offsite.exchange.side import give_side, read_sides
from offsite.model.split import AdapterRule, example_split, parse_adapter
from offsite.scores.scores import Scores
from offsite.tasks import load_task
from offsite.tasks.task import Task
from offsite.training.options import TrainOptions

FULL_LR = (1e-4, 3e-4, 1e-3)  # one of these is near the best from 4M to 500M parameters


@dataclass(frozen=True)
class Plan:
    """One grid: ``recipes`` x ``deltas`` x ``seeds`` on one model and one task.

    Attributes:
        model: folder or hub name.
        eval_data, data: the private data, to score on and to tune on; without the second, only the
            zero-shot scores are computed.
        calibration: the owner's own data, for recipes that need some; ``calibration_task`` is its
            kind, by default that of the private data.
        skip_bad: leave unreadable pictures out.
        adapter: which blocks are adapter, unless a recipe says otherwise.
        recipes: name to list of steps in JSON form, or to ``{"adapter": ..., "steps": [...]}``.
        deltas: name to method in JSON form, with ``"reach": "all"`` to tune all blocks.
        options: how to tune; also how the full fine-tuning baseline is trained.
        full_lr: peak learning rates at which every weight is tuned, of the full model (the
            baseline) and of the offer (healed); the best of them counts.
        healed: whether to tune every weight of each offer (None in ``healed`` otherwise).
        side: files of the groups of side tensors that offers bring, by name.
        baseline: whether to run it at all (None in ``full_tuned`` otherwise).
    """

    model: str
    eval_data: str
    data: str | None = None
    task: str = "text"
    max_length: int = 256
    skip_bad: bool = False
    adapter: str = "ends:2,2"
    calibration: str | None = None
    calibration_task: str | None = None
    recipes: Mapping[str, Any] = field(default_factory=dict)
    deltas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    options: TrainOptions = field(default_factory=TrainOptions)
    full_lr: tuple[float, ...] = FULL_LR
    baseline: bool = True
    healed: bool = True
    dtype: str = "float32"
    side: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            check_seed(seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise OffsiteError(
                f"The seeds {', '.join(map(str, self.seeds))} hold one twice, so that a run would "
                "count as two; give each once."
            )
        if not self.full_lr:
            raise OffsiteError("Tuning every weight needs a learning rate; give at least one.")
        for lr in self.full_lr:
            replace(self.options, lr=lr)  # raises for a rate that cannot be used

    @property
    def reach(self) -> Reach:
        """What the plan's offers allow: ``all`` where some delta tunes all blocks."""
        wide = any(delta.get("reach") == "all" for delta in self.deltas.values())
        return "all" if wide else "adapter"

    def tasks(self) -> tuple[Task, Task]:
        """The kind of the private data, and of the owner's own."""
        kind = partial(load_task, max_length=self.max_length, skip_bad=self.skip_bad)
        return kind(self.task), kind(self.calibration_task or self.task)

    def prepare(self, model: Any) -> Any:
        """The full model with the plan's side tensors beside it."""
        for group in read_sides(self.side):
            give_side(model, group)
        return model


@dataclass(frozen=True)
class Recipe:
    """One recipe of a plan: its steps, and the adapter it is made for.

    ``adapter`` may be ``learned:COUNT``: the blocks that the recipe's LayerReplace pass finds most
    important, as ScaleOT chooses them.
    """

    steps: tuple[Step, ...]
    adapter: str

    @classmethod
    def of(cls, value: Any, adapter: str) -> Recipe:
        """From the plan's form, a list of steps or ``{"adapter", "steps"}``."""
        if isinstance(value, Mapping):
            return cls(tuple(parse_recipe(value.get("steps"))), str(value.get("adapter", adapter)))
        return cls(tuple(parse_recipe(value)), adapter)

    @property
    def rule(self) -> AdapterRule:
        """Which blocks are adapter."""
        return parse_adapter(self.adapter)

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The LayerReplace passes that its steps need, each once, in their order."""
        own = [s for s in self.steps if isinstance(s, LayerReplace) and s.learned is None]
        return tuple(dict.fromkeys(step.training for step in own))

    def check(self, blocks: int) -> None:
        """Refuse an adapter, or a number of blocks to keep, that a model of so many has not."""
        positions(self.steps, example_split(self.rule, blocks).middle, 0)

    def key(self, seed: int) -> dict[str, Any]:
        """What an offer depends on."""
        return {"adapter": self.adapter, "recipe": recipe_identity(self.steps), "seed": seed}


@dataclass(frozen=True)
class Tuning:
    """One delta of a plan: the method, and which blocks of the emulator it tunes."""

    method: Method
    reach: Reach = "adapter"

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Tuning:
        """From the plan's form: a method in JSON, perhaps with ``reach``."""
        method = {name: option for name, option in value.items() if name != "reach"}
        return cls(parse_method(method), parse_reach(str(value.get("reach", "adapter"))))


@dataclass(frozen=True)
class Row:
    """One cell of the grid, with everything a table may want to show."""

    model: str
    task: str
    recipe: str
    delta: str
    seed: int
    scores: Scores
    extra: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The row as one flat JSON object around the scores."""
        names = {"model": self.model, "task": self.task, "recipe": self.recipe}
        return {
            **names,
            "delta": self.delta,
            "seed": self.seed,
            **self.scores.to_json(),
            **self.extra,
        }


def slug(named: Mapping[str, Any], value: Any) -> str:
    """The name that a recipe or a delta has in a plan, as part of a folder's name."""
    name = next(name for name, found in named.items() if found == value)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
