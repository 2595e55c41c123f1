"""Commands that score: one model at a time, the whole story, or a frontier of recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from offsite.cli import options as o
from offsite.cli.owner import Decoder
from offsite.cli.training import training_options
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions

Recipes = Annotated[
    list[str] | None, typer.Option(help="PRESET@BUDGET such as crash@0.45; repeatable.")
]
Keep = Annotated[int | None, typer.Option(help="Uniform drop to so many middle blocks.")]
DistillSteps = Annotated[
    int | None, typer.Option(help="The same once more, distilled for so many steps.")
]
Deltas = Annotated[
    list[str] | None,
    typer.Option(help="Method such as lora:rank=8 or lora+bitfit, or all; repeatable."),
]
Cached = Annotated[bool, typer.Option("--cached", help="Compute nothing: show what --out holds.")]
TestData = Annotated[
    str | None, typer.Option(help="Data to score on; default what the task file names.")
]
Role = Annotated[str | None, typer.Option("--as", help="Which score it is, such as full_tuned.")]
Base = Annotated[str | None, typer.Option(help="Full model that an adapter is run on.")]
Merge = Annotated[
    list[Path] | None, typer.Option(help="Scores of others, as --json wrote them; repeatable.")
]
Harness = Annotated[bool, typer.Option("--harness", help="Score through EleutherAI lm-eval.")]
HarnessTask = Annotated[
    str | None, typer.Option(help="A task of lm-eval's own, by name; it fetches the data.")
]


def score(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Model, offer/ or tuned/; one or several.")],
    data: TestData = None,
    role: Role = None,
    base: Base = None,
    merge: Merge = None,
    harness: Harness = False,
    harness_task: HarnessTask = None,
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    skip_bad: o.SkipBad = False,
    batch_size: o.BatchSize = 16,
    dtype: o.Dtype = None,
    device: o.Device = None,
    details: o.Details = False,
    json: o.Json = False,
) -> None:
    """Score a model, an offer or a tuned model, and merge with the scores others know."""
    from dataclasses import asdict
    from functools import partial

    from offsite.cli.present import score_lines
    from offsite.lab.environment import environment
    from offsite.model.checkpoint import parse_dtype, pick_device
    from offsite.scores.harness import find_tasks, harness_scores
    from offsite.scores.others import Others
    from offsite.scores.scores import KEYS, Scores
    from offsite.scores.scoring import load_scored
    from offsite.scores.settings import private_settings, settings_of, shareable
    from offsite.tasks import load_task
    from offsite.tasks.data import need_source, prepare_all, read_data

    if role is not None and role not in KEYS:
        raise OffsiteError(f"'{role}' is not a score; choose one of: {', '.join(KEYS)}.")
    if role is not None and len(paths) > 1:
        raise OffsiteError("--as names the score of a single path; score the paths one at a time.")
    kind = load_task(task, max_length=max_length, skip_bad=skip_bad)
    test = None
    if harness_task is None:
        test = read_data(kind, need_source(kind, data, "test"))
    elif data is None:
        o.note(f"fetching the data of '{harness_task}'")
        find_tasks([harness_task])
    else:
        raise OffsiteError("Give --data, or --harness-task, which fetches its own; not both.")
    through, name = harness or harness_task is not None, harness_task or kind.name
    facts: dict[str, Any] = {"task": harness_task} if test is None else settings_of(kind)
    if details and test is not None:
        facts |= private_settings(test)
    if through:  # which reads as much at once as the model can, unless told otherwise
        length = max_length if o.typed(context, "max_length") else None
        facts["max_length"] = length
    others = Others.read(merge or (), facts)
    scored: dict[str, tuple[str, Any]] = {}
    total: Scores | None = None
    for path in paths:
        computed = parse_dtype(dtype or "float32")
        found = load_scored(path, kind, computed, base, partial(prepare_all, (test,)))
        key, model = role or found.key, found.model.to(pick_device(device))
        if through:
            given: Any = [harness_task] if test is None else {kind.name: test}
            result = harness_scores(
                model, found.processor, given, batch_size=batch_size, max_length=length
            )[name]
        else:
            assert test is not None
            rows = test.rows(found.processor, model)
            result = kind.evaluate(model, rows, batch_size=batch_size)
        if not math.isfinite(result.value):
            raise OffsiteError(
                f"The outputs of '{path}' are not numbers, so it has no score; compute in another "
                "precision (--dtype float32), or tune it again with a lower learning rate."
            )
        scored[key] = (path, result)
        one = Scores(result.metric, result.higher_is_better, **{key: result.value})
        total = one if total is None else total.merge(one)
    assert total is not None
    if details:
        facts["count"] = result.count
    others.check(facts)
    total = others.merge(total)
    kept = others.details({key: asdict(result) for key, (_, result) in scored.items()})
    more = {"environment": environment(), "details": kept if details else shareable(kept)}
    o.emit({**total.to_json(), **facts, **more}, json, score_lines(scored, total))


@training_options(leave_out=o.NO_EFFECT_IN_LAB)
def lab(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Full model, or an experiment file (.toml, .json).")],
    data: Annotated[str | None, typer.Option(help="Private data to tune on.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Private data to score on.")] = None,
    calibration: Annotated[str | None, typer.Option(help="The owner's own data.")] = None,
    adapter: o.Adapter = "ends:2,2",
    recipe: Recipes = None,
    keep: Keep = None,
    distill_steps: DistillSteps = None,
    delta: Deltas = None,
    prompt_decoder: Decoder = None,
    out: Annotated[Path, typer.Option(help="Folder of cells and results.")] = Path("lab"),
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0",
    full_lr: o.FullLr = "1e-4,3e-4,1e-3",
    baseline: Annotated[bool, typer.Option(help="Run full fine-tuning too.")] = True,
    healed: Annotated[bool, typer.Option(help="Tune every weight of each offer too.")] = True,
    cached: Cached = False,
    jobs: o.Jobs = 1,
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    skip_bad: o.SkipBad = False,
    dtype: o.Dtype = None,
    device: o.Device = None,
    json: o.Json = False,
    *,
    training: TrainOptions,
) -> None:
    """Play both roles: every recipe, delta and seed, with the baselines, in one table."""
    from offsite.deltas import method_json
    from offsite.lab.experiment import make_recipes, named_recipes, read_experiment
    from offsite.lab.plan import Plan
    from offsite.lab.results import run_plans
    from offsite.tasks import load_task
    from offsite.tasks.data import find_source, need_source

    if cached and jobs > 1:
        raise OffsiteError("--cached computes nothing, so --jobs has no effect; leave one out.")
    if model.endswith((".toml", ".json")):
        o.leave_to_file(context, model, ("model", "out", "cached", "jobs", "device", "json"))
        plans = read_experiment(model)
    else:
        kind = load_task(task, max_length=max_length, skip_bad=skip_bad)
        eval_data = need_source(kind, eval_data, "test", "--eval-data")
        data = find_source(kind, data, "train")
        names = list(delta or ["full"])
        side = {"prompt_decoder": str(prompt_decoder)} if prompt_decoder else {}
        if "all" in names:
            fitting = all_that_fit(model, task, adapter, side)
            names = [*fitting, *(name for name in names if name not in ("all", *fitting))]
        recipes = named_recipes(recipe or (), keep, distill_steps)
        plans = [
            Plan(
                model=model,
                data=data,
                eval_data=eval_data,
                task=task,
                max_length=max_length,
                skip_bad=skip_bad,
                adapter=adapter,
                calibration=calibration,
                recipes=make_recipes(recipes, model, task, adapter),
                deltas={name: method_json(name) for name in names},
                seeds=o.whole_seeds(seeds),
                options=training,
                full_lr=o.numbers(full_lr, "learning rates"),
                baseline=baseline,
                healed=healed,
                dtype=dtype or "float32",
                side=side,
            )
        ]
    rows, made_on = run_plans(plans, out, device, cached, jobs=jobs, say=o.note)
    show_rows(rows, out, json, made_on)


def all_that_fit(model: str, task: str, adapter: str, side: Mapping[str, str]) -> list[str]:
    """Every method that can tune this model; the others are named with the reason."""
    from offsite.deltas.fitting import misfits
    from offsite.tasks import load_task

    reasons = misfits(model, load_task(task).auto_class, adapter, side)
    for name, reason in reasons.items():
        if reason is not None:
            o.note(f"skip  {name}: {reason}")
    return [name for name, reason in reasons.items() if reason is None]


def show_rows(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    as_json: bool,
    made_on: Mapping[str, str],
    more: Mapping[str, Any] | None = None,
    lines: Sequence[Any] = (),
) -> None:
    """Write the results in every form under ``out`` and show the table."""
    from offsite.lab.results import best_of, write_results
    from offsite.report.summary import diverged
    from offsite.report.terminal import compared, costs, terminal

    result = write_results(rows, out, o.command(), made_on, more)
    slim = [{k: v for k, v in row.items() if k != "details"} for row in rows]
    shown = {**result, "rows": slim, **({} if len(rows) > 1 else best_of(rows[0]))}
    files = f"results: {out}/results.json (.md, .tex, .csv), intervals.csv"
    unknown = diverged(rows)
    for sentence in unknown if as_json else ():
        o.note(sentence)
    o.emit(shown, as_json, [terminal(rows), compared(rows), costs(rows), *unknown, files, *lines])
