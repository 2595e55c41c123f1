"""Try a few recipes on the owner's own data, in both roles, and recommend one.

The trial is short. It orders recipes on this model; it does not say how good an offer will be.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offsite.compress.align import Align
from offsite.compress.forecast import span
from offsite.compress.recipe import Recipe
from offsite.deltas import method_json
from offsite.lab.cells import plan_cells
from offsite.lab.checking import check_plan
from offsite.lab.dividing import LENGTH, parts
from offsite.lab.duration import seconds
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import parse_adapter
from offsite.training.options import TrainOptions

RECIPES = ("uniform@0.5", "influence@0.5", "influence-align@0.5", "influence-align@0.3")
METHOD = "lora:rank=16"
RATE = 3e-4  # at which every weight of an offer is tuned
ALIGNED = 1e-3  # rate of alignment; on SmolLM2-135M ten steps at 3e-4 end 0.3 nats higher
STEPS, ROWS = 10, 4  # of a run, rows of a step
USEFUL = 0.75  # share of the best gain that a recommended recipe must bring
SIZE = 0.05  # offers whose sizes differ by no more, as shares of the model, are of one size class


@dataclass(frozen=True)
class Tried:
    """One recipe of a trial.

    Attributes:
        recipe: a preset at a budget.
        size: bytes of the offer over bytes of the model.
        verbatim: share of all parameters that leave verbatim, 0..1.
        emulator, plug_in, healed: scores in the task's metric; None where a run diverged.
        gain: how much better the plug-in is than the model untuned, in the metric's unit.
        margin: how much better it is than the offer with every weight tuned.
    """

    recipe: str
    size: float
    verbatim: float
    emulator: float | None
    plug_in: float | None
    healed: float | None
    gain: float | None
    margin: float | None


def make_plan(
    model: Checkpoint,
    data: str,
    eval_data: str | None,
    work: Path,
    *,
    task: str = "text",
    adapter: str = "ends:2,2",
    steps: int = STEPS,
    max_length: int = LENGTH,
    seed: int = 0,
    dtype: str | None = None,
    skip_bad: bool = False,
) -> Plan:
    """The plan of a trial: one part of the data compresses, one plays the tuner's, one scores.

    Args:
        data: the owner's data. A plain text or JSON lines are divided; of other data the same
            examples compress and play the tuner's, and ``eval_data`` must be given.
        work: folder for the parts.
        steps: of alignment, and of tuning, for each recipe.

    Raises:
        OffsiteError: data that cannot be divided, or an adapter that leaves no middle.
    """
    length = min(max_length, LENGTH)
    own, private, test = parts(data, eval_data, work, steps * ROWS * length)
    rule = parse_adapter(adapter)
    recipes = {name: shortened(Recipe.parse(name, model, rule), steps) for name in RECIPES}
    return Plan(
        model=model.name,
        data=private,
        eval_data=test,
        calibration=own,
        task=task,
        max_length=length,
        skip_bad=skip_bad,
        recipes=recipes,
        deltas={METHOD: method_json(METHOD)},
        seeds=(seed,),
        options=TrainOptions(steps=steps, batch_size=ROWS),
        full_lr=(RATE,),
        baseline=False,
        dtype=dtype or "float32",
    )


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so few steps of alignment, on small batches."""
    return replace(
        recipe,
        steps=tuple(
            replace(step, steps=steps, batch_size=ROWS, lr=ALIGNED)
            if isinstance(step, Align)
            else step
            for step in recipe.steps
        ),
    )


def estimate(lab: Lab) -> dict[str, float]:
    """Seconds that each recipe takes on this machine, from one forward pass."""
    found = dict.fromkeys(lab.plan.recipes, 0.0)
    for cell, taken in seconds(lab, plan_cells(lab.plan)).items():
        if cell.recipe:
            found[cell.recipe] += taken
    return found


def run(plan: Plan, work: Path, device: str | None) -> tuple[Lab, Iterator[Tried]]:
    """The lab of a trial, and each recipe's outcome when it is done; what is done stays in work."""
    lab = Lab(plan, work, device, data=check_plan(plan))
    return lab, (outcome(row.to_json()) for row in lab.run())


def outcome(row: Mapping[str, Any]) -> Tried:
    """What a row of the lab says of a recipe."""
    scores = row["scores"]
    gain = None
    if scores.get("plug_in") is not None:
        gain = scores["plug_in"] - scores["zero_shot"]
        gain = gain if row["higher_is_better"] else -gain
    return Tried(
        row["recipe"],
        row["bytes_offer"] / row["bytes_model"],
        row["verbatim"],
        scores.get("emulator_zero_shot"),
        scores.get("plug_in"),
        scores.get("healed"),
        gain,
        row.get("margin"),
    )


def winners(tried: Sequence[Tried]) -> list[Tried]:
    """The recipe of largest gain in each size class, smallest first; those without one are out."""
    found: list[list[Tried]] = []
    for one in sorted(tried, key=lambda one: one.size):
        if one.gain is None:
            continue
        if found and one.size - found[-1][0].size <= SIZE:
            found[-1].append(one)
        else:
            found.append([one])
    return [max(group, key=lambda one: one.gain or 0.0) for group in found]


def recommend(tried: Sequence[Tried]) -> Tried | None:
    """The smallest offer that keeps three quarters of the best gain, best of its size class.

    Margins do not rank: after so few steps they are far larger than an attacker would leave.
    None where no plug-in is better than the model untuned.
    """
    best = winners(tried)
    most = max((one.gain or 0.0 for one in best), default=0.0)
    if most <= 0:
        return None
    return next(one for one in best if (one.gain or 0.0) >= USEFUL * most)


def advice(tried: Sequence[Tried], chosen: Tried | None) -> str:
    """In a few sentences, what the trial says and why."""
    if chosen is None or chosen.gain is None:
        return (
            "No recipe made the plugged-in model better than the untuned one; try more steps "
            "(--try-steps), or data that is further from what the model knows."
        )
    words = (
        f"Recommended: {chosen.recipe}. Of the recipes that ship about {chosen.size:.0%} of the "
        f"model's bytes it gains the most ({chosen.gain:.3f})."
    )
    best = winners(tried)
    most = max(one.gain or 0.0 for one in best)
    if most > chosen.gain:
        words += f" Larger offers gain up to {most:.3f}, not enough to be worth what they add."
    elif any(one.size < chosen.size for one in best):
        words += f" Smaller offers gain less than {USEFUL:.0%} of that."
    if (chosen.margin or 0) <= 0:
        words += (
            " Its margin is not above 0: whoever keeps the offer and tunes all of it does as well "
            "without you. Ship fewer blocks, or try more steps."
        )
    else:
        words += " So few steps barely heal it; measure the margin with 'offsite lab' first."
    return words


def next_command(plan: Plan, data: str, out: Path, chosen: Tried) -> str:
    """What to type to make the recommended offer."""
    line = ["offsite", "offer", plan.model, "--out", str(out), "--recipe", chosen.recipe]
    line += ["--adapter", str(plan.recipes[chosen.recipe].adapter), "--data", data]
    if plan.task != "text":
        line += ["--task", plan.task]
    return shlex.join(line)


def opening(plan: Plan, expected: float) -> str:
    """What is said before a trial begins."""
    steps, runs = plan.options.steps or 1, len(plan.recipes) * (1 + len(plan.full_lr))
    return (
        f"Trying {len(plan.recipes)} recipes: {runs} runs of {steps} steps on {ROWS} rows of "
        f"{plan.max_length} tokens, about {span(expected)} on this machine. Press Ctrl-C to stop; "
        "the same command goes on."
    )


def progress(tried: Sequence[Tried], expected: Mapping[str, float], passed: float) -> str:
    """What is said after a recipe: which, and how long the others take at this speed.

    Args:
        expected: what each recipe was to take, by :func:`estimate`; empty where all were done.
        passed: seconds that those done took.
    """
    text = f"done  {len(tried)} of {max(len(expected), len(tried))}: {tried[-1].recipe}"
    done = sum(expected.get(one.recipe, 0.0) for one in tried)
    left = sum(expected.values()) - done
    return f"{text}, about {span(left / done * passed)} left" if done and left > 0 else text


def limits(lab: Lab) -> str:
    """What a trial left out, in words."""
    plan = lab.plan
    count = len(lab.setting.rows(lab.setting.data.evaluation, lab.setting.loaded))
    return (
        f"A short trial: alignment, tuning and healing take {plan.options.steps} steps each on "
        f"{ROWS} rows of at most {plan.max_length} tokens, healing has one learning rate, and "
        f"{count} rows are scored. Longer runs change every figure, and may change the order."
    )
