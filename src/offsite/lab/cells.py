"""What a cell of the lab depends on, and what it becomes: keys, outcomes and rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from offsite.codec import to_json
from offsite.exchange.side import sides_of
from offsite.lab.plan import Plan, Row, Tuning
from offsite.model.heads import head_path
from offsite.model.stored import model_fingerprint
from offsite.scores.scores import Scores
from offsite.tasks.source import data_identity
from offsite.training.identity import Identity, config_identity, processor_identity
from offsite.training.options import TrainOptions


class NotCached(Exception):
    """A cell is missing, and nothing is to be computed."""


def method_key(tuning: Tuning, model: Any) -> dict[str, Any]:
    """What a tuned delta depends on beside its offer: method, reach, the side tensors it uses."""
    method = tuning.method
    sides = sides_of(model).items()
    more: dict[str, Any] = {name: group.hash for name, group in sides if name == method.side}
    more |= {"reach": tuning.reach} if tuning.reach != "adapter" else {}
    return {"method": to_json(method), **more}


def options_key(options: TrainOptions, model: Any) -> dict[str, Any]:
    """What training depends on: the rate of the head counts only where there is a head."""
    key = options.identity()
    return key if head_path(model) else {name: key[name] for name in key if name != "head_lr"}


def identity(plan: Plan, model: Any, processor: Any) -> Identity:
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


def finite(model: Any) -> bool:
    """Whether every number of a model is finite: a run that diverged leaves others."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def known(value: Any) -> Any:
    """An outcome as JSON, with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flatten(
    parts: Mapping[str, Any], emulator: Mapping[str, Any], tuned: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures beside the scores, and under ``details`` what is known of each score.

    Under ``diverged`` stand the scores that are no finite numbers, where there are any.
    """
    keys = ("bytes_offer", "bytes_model", "bytes_middle", "positions", "adapter")
    more = ("bytes_delta", "trainable", "seconds_per_step", "history")
    details = ("value", "stderr", "count", "extra", "items", "weights", "lr", "rates")
    diverged = [name for name, part in parts.items() if part and part["value"] is None]
    return {
        **{key: emulator[key] for key in keys},
        "total": emulator["blocks"],
        **({"importance": emulator["importance"]} if emulator.get("importance") else {}),
        **{key: tuned[key] for key in more if key in tuned},
        "seconds_offer": emulator["seconds"],
        "memory_offer": emulator["memory"],
        **{f"{key}_tune": tuned[key] for key in ("seconds", "memory") if key in tuned},
        "details": {
            name: {key: part[key] for key in details if key in part}
            for name, part in parts.items()
            if name not in diverged
        },
        **({"diverged": diverged} if diverged else {}),
    }


def make_row(
    plan: Plan,
    known_by: Identity,
    cell: tuple[str, str, int],
    metric: tuple[str, bool],
    parts: Mapping[str, Any],
    tuned: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Row:
    """The row of one recipe, delta and seed.

    ``eval_data`` tells its evaluation data from others, ``setup`` everything that the recipes,
    deltas and seeds of a plan share; only rows alike in both differ by their seed alone.

    Args:
        known_by: the plan's :func:`identity`.
        metric: its name, and whether more is better.
        parts: the outcomes of the stages beside tuning, by the score they give.
        tuned: the outcome of tuning; empty where there was none.
        extra: what else the row is to say.
    """
    recipe, delta, seed = cell
    emulator = parts["emulator_zero_shot"]
    parts = {**parts, **{key: tuned[key] for key in ("emulator_tuned", "plug_in") if key in tuned}}
    scores = Scores(
        *metric,
        **{key: part.get("value") for key, part in parts.items()},
        verbatim=emulator.get("verbatim"),
    )
    shared = known_by | Identity.of(
        options=plan.options.identity(), full_lr=plan.full_lr, adapter=plan.adapter
    )
    setup = {"setup": shared.digest[:12], "eval_data": known_by.parts["eval_data"]}
    setup |= {"eval_name": Path(plan.eval_data).name, "max_length": plan.max_length}
    more = {**setup, **extra, **flatten(parts, emulator, tuned)}
    return Row(plan.model, plan.task, recipe, delta, seed, scores, more)
