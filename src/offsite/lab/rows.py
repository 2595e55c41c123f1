"""A row of the table: a recipe, a delta and a seed, from the results of their cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from offsite.lab.plan import Plan, Row
from offsite.scores.scores import KEYS, Scores
from offsite.training.identity import Identity


def flatten(
    parts: Mapping[str, Any], emulator: Mapping[str, Any], tuned: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures besides the scores, and under ``details`` what is known of each score.

    ``diverged`` has the scores that are not finite numbers, if there are any.
    """
    keys = ("bytes_offer", "bytes_model", "bytes_middle", "positions", "adapter")
    more = ("bytes_delta", "trainable", "seconds_per_step", "history")
    details = ("value", "stderr", "count", "extra", "items", "weights", "lr", "rates", "at_logits")
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

    ``eval_data`` tells its evaluation data from others, ``setup`` everything that the deltas and
    seeds of a recipe share; only rows alike in both differ by their seed alone.

    Args:
        known_by: the plan's :func:`identity`.
        metric: its name, and whether more is better.
        parts: the outcomes of the stages besides tuning, by the score they give.
        tuned: the outcome of tuning; empty where there was none.
        extra: what else the row is to say.
    """
    recipe, delta, seed = cell
    emulator = parts["emulator_zero_shot"]
    again = parts.get("healed_public", {}).get("value")
    parts = {**parts, **{key: tuned[key] for key in ("emulator_tuned", "plug_in") if key in tuned}}
    scores = Scores(
        *metric,
        **{key: part.get("value") for key, part in parts.items() if key in KEYS},
        verbatim=emulator.get("verbatim"),
    )
    if again is not None:
        margin = replace(scores, healed=again).margin
        extra = {**extra, "healed_public": again, "margin_public": margin}
    shared = known_by | Identity.of(
        options=plan.options.identity(),
        full_lr=plan.full_lr,
        **({"healed_lr": plan.healed_lr} if plan.healed_lr else {}),
        adapter=str(plan.recipes[recipe].adapter),
    )
    setup = {"setup": shared.digest[:12], "eval_data": known_by.parts["eval_data"]}
    setup |= {"eval_name": Path(plan.eval_data).name, "max_length": plan.max_length}
    more = {**setup, **extra, **flatten(parts, emulator, tuned)}
    return Row(plan.model, plan.task, recipe, delta, seed, scores, more)
