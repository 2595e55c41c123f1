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


def score(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Model, offer/ or tuned/; one or several.")],
    data: Annotated[
        str | None, typer.Option(help="Data to score on; default what the task file names.")
    ] = None,
    role: Annotated[
        str | None, typer.Option("--as", help="Which score it is, such as full_tuned.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Full model that an adapter is run on.")] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(help="Scores of others, as --json wrote them; repeatable.")
    ] = None,
    harness: Annotated[
        bool, typer.Option("--harness", help="Score through EleutherAI lm-eval.")
    ] = False,
    harness_task: Annotated[
        str | None, typer.Option(help="A task of lm-eval's own, by name; it fetches the data.")
    ] = None,
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

    from offsite.files import read_json
    from offsite.lab.environment import environment
    from offsite.model.checkpoint import parse_dtype, pick_device
    from offsite.scores.harness import find_tasks, harness_scores
    from offsite.scores.scores import DERIVED, KEYS, TITLES, Scores
    from offsite.scores.scoring import load_scored
    from offsite.scores.settings import check_same, private_settings, settings_of, shareable
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
    others = {file: read_json(file) for file in merge or ()}
    for file, theirs in others.items():  # before hours of scoring
        Scores.from_json(theirs)
        check_same(facts, theirs, file)
    total: Scores | None = None
    lines: list[Any] = []
    kept = {}
    for path in paths:
        computed = parse_dtype(dtype or "float32")
        found = load_scored(path, kind, computed, base, partial(prepare_all, (test,)))
        key = role or found.key
        model = found.model.to(pick_device(device))
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
        kept[key] = asdict(result)
        one = Scores(result.metric, result.higher_is_better, **{key: kept[key]["value"]})
        total = one if total is None else total.merge(one)
        lines.append(f"{TITLES[key]:20} {o.describe(result)}   [dim]{path}[/]")
    assert total is not None
    scored = set(kept)
    if details:
        facts["count"] = result.count
    for file, theirs in others.items():
        check_same(facts, theirs, file)
        total = total.merge(Scores.from_json(theirs))
        kept = {**(theirs.get("details") or {}), **kept}
    story = total.to_json()
    lines += [f"{TITLES[k]:20} {v:.4f}" for k, v in story["scores"].items() if k not in scored]
    lines += [f"{k:20} {story[k]:.4f}" for k in DERIVED if k in story]
    more = {"environment": environment(), "details": kept if details else shareable(kept)}
    o.emit({**story, **facts, **more}, json, lines)


@training_options(leave_out=o.NO_EFFECT_IN_LAB)
def lab(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Full model, or an experiment file (.toml, .json).")],
    data: Annotated[str | None, typer.Option(help="Private data to tune on.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Private data to score on.")] = None,
    calibration: Annotated[str | None, typer.Option(help="The owner's own data.")] = None,
    adapter: o.Adapter = "ends:2,2",
    recipe: Annotated[
        list[str] | None, typer.Option(help="PRESET@BUDGET such as crash@0.45; repeatable.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Uniform drop to so many middle blocks.")] = None,
    distill_steps: Annotated[
        int | None, typer.Option(help="The same once more, distilled for so many steps.")
    ] = None,
    delta: Annotated[
        list[str] | None,
        typer.Option(help="Method such as lora:rank=8 or lora+bitfit, or all; repeatable."),
    ] = None,
    prompt_decoder: Decoder = None,
    out: Annotated[Path, typer.Option(help="Folder of cells and results.")] = Path("lab"),
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0",
    full_lr: o.FullLr = "1e-4,3e-4,1e-3",
    baseline: Annotated[bool, typer.Option(help="Run full fine-tuning too.")] = True,
    healed: Annotated[bool, typer.Option(help="Tune every weight of each offer too.")] = True,
    cached: Annotated[
        bool, typer.Option("--cached", help="Compute nothing: show what --out holds.")
    ] = False,
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
    from offsite.lab.experiment import make_recipes, read_experiment, uniform
    from offsite.lab.plan import Plan
    from offsite.lab.results import run_plans
    from offsite.tasks import load_task
    from offsite.tasks.data import find_source, need_source

    if model.endswith((".toml", ".json")):
        o.leave_to_file(context, model, ("model", "out", "cached", "device", "json"))
        plans = read_experiment(model)
    else:
        kind = load_task(task, max_length=max_length, skip_bad=skip_bad)
        eval_data = need_source(kind, eval_data, "test", "--eval-data")
        data = find_source(kind, data, "train")
        names = list(delta or ["full"])
        if "all" in names:
            fitting = all_that_fit(model, task, adapter, prompt_decoder)
            names = [*fitting, *(name for name in names if name not in ("all", *fitting))]
        recipes: dict[str, Any] = {name: name for name in recipe or ()}
        if recipes and keep is None and distill_steps is not None:
            raise OffsiteError(
                "--distill-steps is of the uniform recipe, so beside --recipe it needs --keep; "
                "write PRESET@BUDGET recipes with distillation, such as distil@0.4, without it."
            )
        if keep is not None or not recipes:
            recipes |= uniform(keep, distill_steps)
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
                prompt_decoder=str(prompt_decoder) if prompt_decoder else None,
            )
        ]
    rows, made_on = run_plans(plans, out, device, cached, say=o.note)
    show_rows(rows, out, json, made_on)


def all_that_fit(model: str, task: str, adapter: str, prompt_decoder: Path | None) -> list[str]:
    """Every method that can tune this model; the others are named with the reason."""
    from offsite.deltas.fitting import misfits
    from offsite.tasks import load_task

    reasons = misfits(model, load_task(task).auto_class, adapter, prompt_decoder)
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
