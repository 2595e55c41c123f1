"""Commands of the model owner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli import options as o

if TYPE_CHECKING:
    from offsite.exchange.offer import Offer
    from offsite.exchange.record import Record
    from offsite.tasks.data import TaskData

Model = Annotated[str, typer.Argument(help="Folder or hub name of the full model.")]
Budget = Annotated[
    float | None, typer.Option(help="Share of the middle's bytes the emulator may take, 0 to 1.")
]
Keep = Annotated[int | None, typer.Option(help="Middle blocks to keep; default all.")]
Distill = Annotated[int | None, typer.Option(help="Steps of distillation after the recipe.")]
Learned = Annotated[
    str | None, typer.Option(help="Folder of a LayerReplace pass ('offsite importance --learn').")
]

Decoder = Annotated[
    Path | None,
    typer.Option(help="A prompt decoder ('offsite prompt-decoder'), or an offer that has it."),
]


def offer(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the offer; must not exist.")],
    adapter: o.Adapter = "ends:2,2",
    recipe: Annotated[
        str | None,
        typer.Option(help="A preset ('offsite recipes' lists them) or a JSON file of steps."),
    ] = None,
    keep: Keep = None,
    budget: Budget = None,
    distill_steps: Distill = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Ship every block of the middle as it is.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="Your own data, where a step needs it.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Data to score the emulator on.")] = None,
    record: Annotated[Path | None, typer.Option(help="Your private record.")] = None,
    name: Annotated[str | None, typer.Option(help="What the offer calls the model.")] = None,
    expires_days: Annotated[
        int | None, typer.Option(help="Days the offer is good for.", min=1, max=36500)
    ] = None,
    max_recovered: o.MaxRecovered = None,
    audit_data: o.AuditData = None,
    audit_tokens: o.AttackTokens = o.ATTACK_TOKENS,
    earlier: o.Earlier = None,
    learned: Learned = None,
    prompt_decoder: Decoder = None,
    reach: o.Reach = "adapter",
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    skip_bad: o.SkipBad = False,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    dtype: o.Dtype = None,
    device: o.Device = None,
    json: o.Json = False,
) -> None:
    """Cut a model, compress its middle and write the offer."""
    from datetime import timedelta

    from offsite.audit.gate import make_gate
    from offsite.compress.choice import RecipeOptions
    from offsite.compress.scaleot.step import resolve_adapter
    from offsite.compress.step import check_data
    from offsite.exchange.manifest import now, parse_reach
    from offsite.files import check_free
    from offsite.model.checkpoint import Checkpoint, parse_dtype, pick_device
    from offsite.model.kind import IMAGE
    from offsite.model.split import parse_adapter
    from offsite.owner.judgement import judge_emulator
    from offsite.owner.offering import check_record, make_offer
    from offsite.tasks import load_task
    from offsite.tasks.data import find_source, prepare_all, read_data
    from offsite.training.processes import main_process
    from offsite.training.resume import finish_work, work_folder

    check_free(out)
    pick_device(device)
    record = record or out.with_name(f"{out.name}.record.json")
    kind = load_task(task, max_length=max_length, skip_bad=skip_bad)
    own = read_data(kind, find_source(kind, data, "train"), train=True)
    test = read_data(kind, find_source(kind, eval_data, "test"))
    public = read_data(kind, audit_data, train=True)
    gate = make_gate(max_recovered, public, o.effort(audit_tokens), earlier or ())
    full = Checkpoint.of(model, kind.auto_class)
    if any(given is not None for given in (own, test, public)):
        prepare_all((own, test, public), full.processor, full.config)
    rule = parse_adapter(adapter)
    options = RecipeOptions(recipe, keep, budget, distill_steps, whole, learned)
    chosen = options.choose(full, rule, own is not None)
    if notice := options.notice(own is not None):
        o.note(notice)
    chosen.check_learned(learned)
    check_data(chosen.steps, own)
    check_record(record, full)
    work = work_folder(out, resume)
    for line in chosen.cost(None if full.kind is IMAGE else max_length):
        o.note(line)
    made, private = make_offer(
        full,
        adapter=resolve_adapter(rule, learned, full),
        recipe=chosen.steps,
        data=own,
        processor=full.processor,
        task=kind,
        seed=seed,
        device=device,
        dtype=parse_dtype(dtype),
        name=name,
        expires=now() + timedelta(days=expires_days) if expires_days is not None else None,
        side={"prompt_decoder": prompt_decoder},
        reach=parse_reach(reach),
        work=work if any(step.needs.work for step in chosen.steps) else None,
        resume=resume,
    )
    audited = gate and gate.check(
        full, made, private, path=record, device=pick_device(device), say=o.note
    )
    if not main_process():
        return
    made.save(out, record)
    finish_work(work)
    if test is None and own is not None:
        test = read_data(kind, str(own.source))  # a folder may have a part to score on
    zero_shot = score_model(made.model, test, made.processor, device)
    result, lines = summary(out, record, made, private)
    if audited:
        result["recovered"] = audited.best.recovered
        lines.append(f"  recovered    {audited.best.recovered:.1%}, by: {audited.best.name}")
    if zero_shot is not None:
        result |= {"emulator_zero_shot": zero_shot.value, "metric": zero_shot.metric}
        lines.append(f"  zero-shot    {o.describe(zero_shot)} (the emulator, before tuning)")
    if warning := judge_emulator(made.model, zero_shot):
        result["warning"] = warning
        lines.append(f"  [bold]warning[/]      {warning}")
    o.emit(result, json, lines)


def summary(
    out: Path, path: Path, made: Offer, private: Record
) -> tuple[dict[str, Any], list[str]]:
    """What to say of an offer that was written: data for ``--json``, and lines for people."""
    from offsite.exchange.record import Record
    from offsite.lab.measure import folder_bytes, offer_bytes
    from offsite.report.structure import spell

    everything, entry = Record.load(path), private.offers[0]
    size = offer_bytes(made)
    result: dict[str, Any] = {
        "offer": str(out),
        "record": str(path),
        "id": made.manifest.id,
        "bytes_offer": size,
        "bytes_model": private.model_bytes,
        "bytes_folder": folder_bytes(out),
        "adapter": entry.adapter,
        "middle": entry.middle,
        "recipe": entry.recipe,
        "verbatim": private.verbatim,
        "verbatim_so_far": everything.verbatim,
    }
    lines = [
        f"[bold]{out}[/]  offer {made.manifest.id[:8]} of {made.manifest.model_name}",
        f"  blocks       adapter {spell(entry.adapter)}, middle {len(entry.middle)} of "
        f"{entry.total - len(entry.adapter)}",
        f"  bytes        {size:,} of the model's {private.model_bytes:,} "
        f"({size / private.model_bytes:.1%})",
        f"  verbatim     {private.verbatim:.1%} of the parameters leave as they are",
    ]
    if len(everything.offers) > 1:
        lines.append(
            f"  so far       {everything.verbatim:.1%} over {len(everything.offers)} offers"
        )
    lines.append(f"  record       {path} (private: keep it, never send it)")
    return result, lines


def plug(
    model: Model,
    delta: Annotated[Path, typer.Argument(help="Folder of the delta.")],
    record: Annotated[Path, typer.Option(help="The private record made with the offer.")],
    out: Annotated[Path, typer.Option(help="Folder of the tuned model; must not exist.")],
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Keep the delta apart: a peft adapter or modules.")
    ] = False,
    prompt_decoder: Decoder = None,
    again: Annotated[bool, typer.Option("--again", help="Plug a delta a second time.")] = False,
    require_signature: o.RequireSignature = None,
    late: Annotated[
        bool, typer.Option("--late", help="Take a delta although its offer has expired.")
    ] = False,
    json: o.Json = False,
    dtype: o.Dtype = None,
) -> None:
    """Put a delta into the full model."""
    from offsite.deltas import method_text
    from offsite.exchange.delta import Delta
    from offsite.exchange.record import Record
    from offsite.files import check_free
    from offsite.model.checkpoint import parse_dtype
    from offsite.owner.plugged import Plugged
    from offsite.owner.writing import write_plugged

    check_free(out)
    kept = Record.load(record)
    given = Delta.load(delta, require_signature=require_signature)
    plugged = write_plugged(
        out,
        model,
        given,
        kept,
        as_adapter=as_adapter,
        side={"prompt_decoder": prompt_decoder},
        dtype=parse_dtype(dtype),
        again=again,
        late=late,
    )
    if isinstance(plugged, Plugged):
        form = "a peft adapter" if plugged.peft_config else "modules for offsite.load_plugged"
    else:
        form = "a plain transformers checkpoint"
    manifest, words = given.manifest, method_text(given.manifest.method)
    result = {"out": str(out), "delta": manifest.id, "offer": manifest.parent, "form": form}
    o.emit(result, json, [f"[bold]{out}[/]  {form}: {words} delta {manifest.id[:8]} plugged in"])


def score_model(model: Any, data: TaskData | None, processor: Any, device: str | None) -> Any:
    """The task's evaluation of a model on data; None without any."""
    from offsite.model.checkpoint import pick_device

    if data is None:
        return None
    return data.task.evaluate(model.to(pick_device(device)), data.rows(processor, model))
