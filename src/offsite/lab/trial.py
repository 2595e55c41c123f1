"""What an owner may ship: a few recipes tried on the owner's own data, with both roles played.

The trial is short. It orders recipes on this model; it does not say how good an offer will be.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offsite.codec import to_json
from offsite.compress.forecast import seconds_of, span
from offsite.compress.recipe import Recipe
from offsite.deltas import method_json
from offsite.errors import OffsiteError
from offsite.files import write_file
from offsite.lab.checking import check_plan
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.model.checkpoint import Checkpoint
from offsite.model.split import parse_adapter
from offsite.tasks.rows import JSON_LINES, TABLES, read_text
from offsite.training.options import TrainOptions

RECIPES = ("uniform@0.5", "influence@0.5", "influence-align@0.5", "influence-align@0.3")
METHOD = "lora:rank=16"
RATES = (3e-4, 1e-3)  # at which every weight of an offer is tuned; the better one counts
LENGTH, ROWS = 128, 4  # tokens of a row, rows of a step
SCORED = 64  # rows to score on
USEFUL = 0.5  # share of the best gain that a recommended recipe must bring


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
    steps: int = 20,
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
        full_lr=RATES,
        baseline=False,
        dtype=dtype or "float32",
    )


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many steps wherever a step of it trains."""
    return replace(
        recipe,
        steps=tuple(
            replace(step, steps=steps) if "steps" in to_json(step) else step  # type: ignore[type-var]
            for step in recipe.steps
        ),
    )


def parts(data: str, eval_data: str | None, work: Path, tokens: int) -> tuple[str, str, str]:
    """Files to compress with, to play the tuner's data, and to score on.

    Args:
        tokens: how many a part needs; a plain text is cut to about as much.

    Raises:
        OffsiteError: data that is too short, or that cannot be divided.
    """
    path = Path(data)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in (".json", ".npz", ".parquet", ".xlsx", *TABLES) or ":" in data:
        if eval_data is None:
            raise OffsiteError(
                f"'{data}' cannot be divided into parts; give --eval-data with other examples to "
                "score on."
            )
        return data, data, eval_data
    content = read_text(path)
    units = content.splitlines(keepends=True) if suffix in JSON_LINES else words(content)
    shares = (0.5, 1.0) if eval_data is not None else (0.4, 0.8, 1.0)
    limit = None if suffix in JSON_LINES else 8 * tokens  # characters
    found = []
    start = 0
    for index, share in enumerate(shares):
        end = round(share * len(units))
        text = "".join(units[start:end])[:limit]
        if not text.strip():
            raise OffsiteError(f"'{data}' is too short to be divided; give more of it.")
        write_file(work / f"part-{index}{suffix or '.txt'}", text)
        found.append(str(work / f"part-{index}{suffix or '.txt'}"))
        start = end
    return found[0], found[1], eval_data or found[2]


def words(text: str) -> list[str]:
    """The words of a text, each with the space after it."""
    return [word + " " for word in text.split(" ")]


def estimate(lab: Lab) -> float:
    """Seconds that a whole trial takes on this machine, from one forward pass."""
    plan, setting = lab.plan, lab.setting
    rows = setting.rows(setting.data.evaluation, setting.loaded)
    batch = setting.task.collate([rows[i % len(rows)] for i in range(ROWS)])
    each = seconds_of(setting.loaded, {k: v.to(setting.device) for k, v in batch.items()})
    steps = plan.options.steps or 1
    passes = len(rows) / ROWS  # the model untuned
    for recipe in plan.recipes.values():
        needs = [step.needs for step in recipe.steps]
        passes += sum(need.rows * need.passes / ROWS for need in needs)
        passes += 3 * steps * (1 + len(plan.full_lr))  # a step is a pass forward and one back
        passes += len(rows) / ROWS * (3 + len(plan.full_lr))
    return passes * each


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


def recommend(tried: Sequence[Tried]) -> Tried | None:
    """The recipe of largest margin among those that gain at least half as much as the best.

    None where no plug-in is better than the model untuned.
    """
    gains = [one.gain for one in tried if one.gain is not None and one.margin is not None]
    if not gains or max(gains) <= 0:
        return None
    least = USEFUL * max(gains)
    useful = [one for one in tried if one.gain is not None and one.gain >= least]
    return max((one for one in useful if one.margin is not None), key=lambda one: one.margin or 0)


def advice(tried: Sequence[Tried], chosen: Tried | None) -> str:
    """In one or two sentences, what the trial says."""
    if chosen is None:
        return (
            "No recipe made the plugged-in model better than the untuned one; try more steps "
            "(--try-steps), or data that is further from what the model knows."
        )
    words = f"Recommended: {chosen.recipe}, the largest margin among recipes that gain enough."
    if (chosen.margin or 0) <= 0:
        words += (
            " Its margin is not above 0: whoever keeps the offer and tunes all of it does as well "
            "without you. Ship fewer blocks, or try more steps."
        )
    return words


def next_command(plan: Plan, data: str, out: Path, chosen: Tried) -> str:
    """What to type to make the recommended offer."""
    line = ["offsite", "offer", plan.model, "--out", str(out), "--recipe", chosen.recipe]
    line += ["--adapter", str(plan.recipes[chosen.recipe].adapter), "--data", data]
    if plan.task != "text":
        line += ["--task", plan.task]
    return shlex.join(line)


def opening(plan: Plan, seconds: float) -> str:
    """What is said before a trial begins."""
    steps, rates = plan.options.steps or 1, len(plan.full_lr)
    runs = len(plan.recipes) * (1 + rates)
    tokens = runs * steps * ROWS * plan.max_length
    return (
        f"Trying {len(plan.recipes)} recipes: {runs} runs of {steps} steps, {tokens:,} tokens, "
        f"about {span(seconds)} on this machine. Press Ctrl-C to stop; the same command goes on."
    )
