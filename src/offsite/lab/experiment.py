"""Experiment files: a grid of models, tasks, recipes, deltas and seeds in one TOML file.

Data paths are relative to the file. Whatever is given once holds for every task::

    models = ["gpt2-xl"]
    adapter = "ends:2,2"
    seeds = [0, 1, 2]
    calibration = "books.txt"

    [options]                     # of tuning: steps, lr, batch_size ...
    steps = 500

    [recipes]                     # a preset at a budget, a list of steps, or a JSON file of them
    uniform = "uniform@0.4"
    healed = [{kind = "drop", keep = 8}, {kind = "distill", steps = 2000}]

    [deltas]
    full = "full"
    lora = "lora:rank=8"

    [decode]                      # ways to decode each delta: a text, or a table with one
    public = {text = "public.txt", steps = 300}

    [[tasks]]
    task = "text"
    data = "train.txt"
    eval_data = "test.txt"
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from offsite.codec import first_fault, from_json
from offsite.compress.recipe import Recipe
from offsite.deltas import method_json
from offsite.errors import OffsiteError
from offsite.lab.plan import FULL_LR, Plan
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import parse_adapter
from offsite.owner.decode import Decode
from offsite.tasks import load_task
from offsite.tasks.data import find_source, need_source
from offsite.training.options import TrainOptions

UNUSED = {
    "seed": "write seeds = [0, 1] next to the models",
    "save_every": "its cells are what it goes on from",
    "eval_every": "it scores when a run has ended",
    "patience": "it scores when a run has ended",
}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Length = Annotated[int, Field(strict=True, ge=2, lt=2**31)]


class TaskEntry(BaseModel):
    """One task of an experiment; what it leaves out is the experiment's."""

    model_config = ConfigDict(extra="forbid")
    task: str = "text"
    eval_data: str | None = None
    data: str | None = None
    calibration: str | None = None
    max_length: Length | None = None
    options: dict[str, Any] = {}


class Experiment(BaseModel):
    """What an experiment file says."""

    model_config = ConfigDict(extra="forbid")
    models: Annotated[list[str], Field(min_length=1)]
    tasks: Annotated[list[TaskEntry], Field(min_length=1)]
    recipes: dict[str, Any]
    deltas: dict[str, Any] = {"full": "full"}
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    adapter: str = "ends:2,2"
    calibration: str | None = None
    calibration_task: str | None = None
    max_length: Length = 256
    skip_bad: bool = False
    options: dict[str, Any] = {}
    full_lr: Finite | Annotated[list[Finite], Field(min_length=1)] = list(FULL_LR)
    healed_lr: list[Finite] = []
    baseline: bool = True
    healed: bool = True
    healed_tokens: Annotated[int, Field(strict=True, ge=0, lt=2**40)] = 0
    dtype: str = "float32"
    side: dict[str, str] = {}
    decode: dict[str, Any] = {}


def read_experiment(path: str | Path) -> list[Plan]:
    """The plans of an experiment file (TOML or JSON), one per model and task.

    Raises:
        OffsiteError: not such a file; the offending key is named.
    """
    path = Path(path)
    if not path.is_file():
        raise OffsiteError(f"There is no experiment file '{path}'; check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        found = Experiment.model_validate(data)
    except ValidationError as error:
        where, why = first_fault(error)
        raise OffsiteError(f"'{path}': {where}: {why}.") from error
    except ValueError as error:
        raise OffsiteError(f"'{path}' is not valid TOML or JSON: {error}.") from error
    return [
        make_plan(found, model, entry, path.parent)
        for model in found.models
        for entry in found.tasks
    ]


def make_plan(found: Experiment, model: str, entry: TaskEntry, folder: Path) -> Plan:
    """The plan of one model and one task."""
    name = str(folder / model) if (folder / model).exists() else model

    def resolve(source: str | None) -> str | None:
        return None if source is None else str(folder / source)

    def resolve_task(text: str) -> str:
        return str(folder / text) if text.endswith((".toml", ".json")) else text

    task, public = resolve_task(entry.task), found.calibration_task
    kind = load_task(task)
    return Plan(
        model=name,
        eval_data=need_source(kind, resolve(entry.eval_data), "test", "eval_data"),
        data=find_source(kind, resolve(entry.data), "train"),
        task=task,
        max_length=entry.max_length or found.max_length,
        skip_bad=found.skip_bad,
        calibration=resolve(entry.calibration or found.calibration),
        calibration_task=None if public is None else resolve_task(public),
        recipes=make_recipes(found.recipes, name, task, found.adapter, folder),
        deltas={label: method_of(text) for label, text in found.deltas.items()},
        seeds=tuple(found.seeds),
        options=options_of({**found.options, **entry.options}),
        full_lr=tuple(found.full_lr) if isinstance(found.full_lr, list) else (found.full_lr,),
        healed_lr=tuple(found.healed_lr),
        baseline=found.baseline,
        healed=found.healed,
        healed_tokens=found.healed_tokens,
        dtype=found.dtype,
        side={group: str(folder / file) for group, file in found.side.items()},
        decode={label: decode_of(how, folder) for label, how in found.decode.items()},
    )


def options_of(values: Mapping[str, Any]) -> TrainOptions:
    """Training options from a table.

    Raises:
        OffsiteError: an unknown option, one that a lab has no use for, or a value of another kind.
    """
    known = TrainOptions.__dataclass_fields__.keys() - UNUSED.keys()
    for name in set(UNUSED) & set(values):
        raise OffsiteError(f"The training option '{name}' has no effect in a lab; {UNUSED[name]}.")
    if odd := sorted(set(values) - known):
        raise OffsiteError(
            f"There is no training option '{odd[0]}'; there are: {', '.join(sorted(known))}."
        )
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
    for name, value in numbers.items():
        low = 0 if name == "weight_decay" else -math.inf
        if not low <= value < 2**31:
            raise OffsiteError(
                f"The training option '{name}' cannot be {value}; choose a usual one."
            )
    try:  # as JSON, where a whole number may stand for a float and a list for a tuple
        return TypeAdapter(TrainOptions).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        where, why = first_fault(error)
        raise OffsiteError(f"The training option '{where}' cannot take this: {why}.") from error


def method_of(text: Any) -> dict[str, Any]:
    """A delta method from ``"lora:rank=8"`` or its JSON form."""
    return dict(text) if isinstance(text, Mapping) else method_json(str(text))


def decode_of(how: Any, folder: Path) -> Decode:
    """A way to decode from ``"sample"``, ``"public.txt"`` or a table with such a ``text``.

    Raises:
        OffsiteError: an unknown option, or a value that cannot be used.
    """
    values = {"text": how} if isinstance(how, str) else dict(how)
    given: Decode = from_json({"decode": Decode}, {"kind": "decode", **values}, "decoding")
    if given.file is None:
        return given
    drawn = given.text.removesuffix(given.file)
    return replace(given, text=f"{drawn}{folder / given.file}")


def make_recipes(
    written: Mapping[str, Any], model: str, task: str, adapter: str, folder: Path = Path()
) -> dict[str, Recipe]:
    """The recipes of a plan by name, each in any form that :meth:`Recipe.parse` reads.

    Args:
        folder: where files of steps are looked for.

    Raises:
        OffsiteError: a form that cannot be read, or a preset that does not fit the model.
    """
    checkpoint, rule = Checkpoint.of(model, load_task(task).auto_class), parse_adapter(adapter)

    def found(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value.endswith(".json") else value

    return {name: Recipe.parse(found(value), checkpoint, rule) for name, value in written.items()}


def named_recipes(
    presets: Sequence[str], keep: int | None, distill_steps: int | None
) -> dict[str, Any]:
    """What a lab without a file compares: presets, and the uniform drop where it is asked for.

    Raises:
        OffsiteError: steps of distillation without the uniform recipe that they are for.
    """
    recipes: dict[str, Any] = {name: name for name in presets}
    if recipes and keep is None and distill_steps is not None:
        raise OffsiteError(
            "--distill-steps distils the uniform recipe, which needs --keep if there is a "
            "--recipe; add --keep, or use a preset that distils, such as distil@0.4."
        )
    if keep is None and recipes:
        return recipes
    drop = [] if keep is None else [{"kind": "drop", "keep": keep}]
    name = "whole middle" if keep is None else f"uniform {keep}"
    recipes[name] = drop
    if distill_steps is not None:
        recipes[f"{name} + distil"] = [*drop, {"kind": "distill", "steps": distill_steps}]
    return recipes
