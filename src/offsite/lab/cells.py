"""The cells of the lab: what each computes, what it depends on, and how it is cached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from offsite.codec import to_json
from offsite.compress.scaleot.training import Training
from offsite.exchange.side import sides_of
from offsite.lab.plan import Plan, Tuning
from offsite.model.heads import head_path
from offsite.model.stored import model_fingerprint
from offsite.model.tensors import is_finite
from offsite.owner.decode import Decode
from offsite.tasks.source import data_identity
from offsite.training.identity import Identity, config_identity, processor_identity
from offsite.training.options import TrainOptions

Stage = Literal["zero_shot", "full_tuned", "learned", "offer", "tuned", "decoded", "healed"]


class NotCached(Exception):
    """A cell is missing, and nothing is to be computed."""


@dataclass(frozen=True)
class Cell:
    """One computation of a plan, with the plan's names for recipe, delta and decoding.

    Attributes:
        stage: ``zero_shot`` and ``full_tuned`` are of the full model, ``offer`` makes an emulator
            and scores it, ``tuned`` tunes a delta through it and plugs it, ``decoded`` decodes that
            delta, ``healed`` tunes every weight of the offer, and ``learned`` is the LayerReplace
            pass of a ScaleOT recipe.
        lr: the rate of a stage that tunes every weight.
        tokens: how many of public text ``healed`` begins with.
        training: how a LayerReplace pass runs.
    """

    stage: Stage
    seed: int = 0
    recipe: str = ""
    delta: str = ""
    decode: str = ""
    lr: float | None = None
    tokens: int = 0
    training: Training | None = None

    def __str__(self) -> str:
        named = [self.stage, self.recipe, self.delta, self.decode]
        named += [f"lr {self.lr:g}"] if self.lr else []
        named += [f"{self.tokens:,} public tokens first"] if self.tokens else []
        return "  ".join([*(part for part in named if part), f"seed {self.seed}"])


CellGraph = dict[Cell, tuple[Cell, ...]]  # each cell after those it needs, and which those are


def plan_cells(plan: Plan) -> CellGraph:
    """The cells of a plan, each after those it needs.

    The passes that many wait for come first, then what all rows share, then one row after another,
    so that a run which is cut off leaves whole rows.
    """
    rates, healing = (plan.full_lr, plan.healing) if plan.data else ((), ())
    passes: CellGraph = {}
    rows: CellGraph = {}
    for seed in plan.seeds:
        for name, recipe in plan.recipes.items():
            own = tuple(Cell("learned", seed, training=one) for one in recipe.trainings)
            offer = Cell("offer", seed, name)
            passes |= dict.fromkeys(own, ())
            rows[offer] = own
            if plan.data:
                for delta in plan.deltas:
                    rows[tuned := Cell("tuned", seed, name, delta)] = (offer,)
                    for decode in plan.decodings(delta):
                        rows[Cell("decoded", seed, name, delta, decode)] = (offer, tuned)
            if plan.healed:
                for tokens in plan.budgets:
                    healed = (Cell("healed", seed, name, lr=lr, tokens=tokens) for lr in healing)
                    rows |= dict.fromkeys(healed, (offer,))
    shared = [Cell("zero_shot")]
    if plan.baseline:
        shared += [Cell("full_tuned", seed, lr=lr) for seed in plan.seeds for lr in rates]
    return passes | dict.fromkeys(shared, ()) | rows


def method_key(tuning: Tuning, model: nn.Module) -> dict[str, Any]:
    """What a tuned delta depends on besides its offer: method, reach, the side tensors it uses."""
    method = tuning.method
    sides = sides_of(model).items()
    more: dict[str, Any] = {name: group.hash for name, group in sides if name == method.side}
    more |= {"reach": tuning.reach} if tuning.reach != "adapter" else {}
    return {"method": to_json(method), **more}


def decode_key(how: Decode) -> dict[str, Any]:
    """What decoding depends on besides the delta: the text counts by what it holds."""
    kind = "sample" if how.text != how.file else "file"
    return {"decode": {**asdict(how), "text": [kind, data_identity(how.file)]}}


def options_key(options: TrainOptions, model: nn.Module) -> dict[str, Any]:
    """What training depends on: the rate of the head counts only where there is a head."""
    key = options.identity()
    return key if head_path(model) else {name: key[name] for name in key if name != "head_lr"}


def identity(plan: Plan, model: nn.Module, processor: Any) -> Identity:
    """What every cell of a plan depends on: model, tokenizer, tasks and data by what they hold."""
    private, public = plan.tasks()
    generation = getattr(model, "generation_config", None)
    return Identity.of(
        model=model_fingerprint(model),
        config=config_identity(model.config),
        generation=config_identity(generation),
        processor=processor_identity(processor),
        task=private.identity(),
        calibration_task=public.identity(),
        dtype=plan.dtype,
        data=data_identity(plan.data),
        eval_data=data_identity(plan.eval_data),
        calibration=data_identity(plan.calibration),
    )


def finite(model: nn.Module) -> bool:
    """Whether every parameter is finite; those of a run that diverged are not."""
    return all(map(is_finite, model.parameters()))


def known(value: Any) -> Any:
    """An outcome as JSON, with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
