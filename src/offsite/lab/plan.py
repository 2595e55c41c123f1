"""The input and the output of the lab: plans, tunings and rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from offsite.compress.recipe import Recipe
from offsite.deltas import parse_method
from offsite.deltas.method import Method
from offsite.errors import OffsiteError, check_seed
from offsite.exchange.manifest import Reach, parse_reach
from offsite.exchange.side import attach_side, read_sides
from offsite.owner.decode import Decode
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
        recipes: the recipes by name; each says which blocks are adapter.
        deltas: name to method in JSON form, with ``"reach": "all"`` to tune all blocks.
        options: how to tune; also how the full fine-tuning baseline is trained.
        full_lr: peak learning rates at which every weight is tuned, of the full model (the
            baseline) and of the offer (healed); the best of them counts.
        healed_lr: those of the offer, where they are others.
        baseline: whether to tune every weight of the full model (None in ``full_tuned`` otherwise).
        healed: whether to tune every weight of each offer (None in ``healed`` otherwise).
        healed_tokens: how many tokens of the owner's own data are tuned on before that in a second
            trial, by a tuner who finds public text; 0 for no such trial.
        dtype: precision to hold the model in.
        decode: ways for the owner to decode each delta that merges, by name; a row of its own each.
        side: files of the groups of side tensors that offers bring, by name.
    """

    model: str
    eval_data: str
    data: str | None = None
    task: str = "text"
    max_length: int = 256
    skip_bad: bool = False
    calibration: str | None = None
    calibration_task: str | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    deltas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    options: TrainOptions = field(default_factory=TrainOptions)
    full_lr: tuple[float, ...] = FULL_LR
    healed_lr: tuple[float, ...] = ()
    baseline: bool = True
    healed: bool = True
    healed_tokens: int = 0
    dtype: str = "float32"
    side: Mapping[str, str] = field(default_factory=dict)
    decode: Mapping[str, Decode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for seed in self.seeds:
            check_seed(seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise OffsiteError(
                f"The seeds {', '.join(map(str, self.seeds))} hold one twice, and its run would "
                "count as two; give each once."
            )
        if not self.full_lr:
            raise OffsiteError("Tuning every weight needs a learning rate; give at least one.")
        if self.healed_tokens and not (self.healed and self.calibration):
            raise OffsiteError(
                "Healing on public text first needs 'healed' and calibration data; give both, or "
                "leave out 'healed_tokens'."
            )
        for lr in (*self.full_lr, *self.healed_lr):
            replace(self.options, lr=lr)  # raises for a rate that cannot be used

    @property
    def reach(self) -> Reach:
        """What the plan's offers allow: ``all`` where some delta tunes all blocks."""
        wide = any(delta.get("reach") == "all" for delta in self.deltas.values())
        return "all" if wide else "adapter"

    @property
    def healing(self) -> tuple[float, ...]:
        """The rates at which every weight of an offer is tuned."""
        return self.healed_lr or self.full_lr

    @property
    def budgets(self) -> tuple[int, ...]:
        """Tokens of public text that every weight of an offer is tuned on first, by trial."""
        return (0, self.healed_tokens) if self.healed_tokens else (0,)

    def decodings(self, delta: str) -> tuple[str, ...]:
        """The names of the ways to decode a delta; none where its method does not merge."""
        return tuple(self.decode) if Tuning.of(self.deltas[delta]).method.merges else ()

    def tasks(self) -> tuple[Task, Task]:
        """The kind of the private data, and of the owner's own."""
        kind = partial(load_task, max_length=self.max_length, skip_bad=self.skip_bad)
        return kind(self.task), kind(self.calibration_task or self.task)

    def prepare(self, model: Any) -> Any:
        """The full model with the plan's side tensors attached."""
        for group in read_sides(self.side):
            attach_side(model, group)
        return model


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
