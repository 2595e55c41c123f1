"""Commands of the model owner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.decoding import DecodeOptions
from offsite.cli.groups import grouped
from offsite.cli.output import emit, headed, note
from offsite.cli.recipe import RecipeOptions
from offsite.cli.shared import GateOptions, Machine, RowOptions
from offsite.cli.trial import TrialOptions

Out = Annotated[Path, typer.Option(help="Folder of the offer; must not exist.")]
OwnData = Annotated[
    str | None, typer.Option(help="Your own data, for steps that measure or train.")
]
EvalData = Annotated[str | None, typer.Option(help="Data to score the emulator on.")]
RecordFile = Annotated[
    Path | None,
    typer.Option(help="Your private record; by default OUT.record.json beside the offer."),
]
Name = Annotated[str | None, typer.Option(help="Name of the model in the offer.")]
Days = Annotated[
    int | None,
    typer.Option(help="Days until the offer expires; by default never.", min=1, max=36500),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(help="Do not send this: added-tokens, chat-template or labels; repeatable."),
]


@grouped()
def offer(
    model: o.Model,
    out: Out,
    adapter: o.Adapter = "ends:2,2",
    data: OwnData = None,
    eval_data: EvalData = None,
    record: RecordFile = None,
    name: Name = None,
    expires_days: Days = None,
    prompt_decoder: o.Decoder = None,
    reach: o.Reach = "adapter",
    leave_out: LeaveOut = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    json: o.Json = False,
    *,
    choice: RecipeOptions,
    trial: TrialOptions,
    gate: GateOptions,
    rows: RowOptions,
    machine: Machine,
) -> None:
    """Cut a model, compress its middle and write the offer."""
    from offsite.cli import offering
    from offsite.exchange.manifest import parse_reach
    from offsite.files import check_free
    from offsite.owner.offering import make_offer
    from offsite.training.processes import main_process
    from offsite.training.resume import finish_work, work_folder

    check_free(out)
    if trial.compare:
        return trial.run(model, out, data, eval_data, rows, machine, adapter, seed, json)
    place, dtype, kind = machine.pick(), machine.precision(), rows.load()
    record = record or out.with_name(f"{out.name}.record.json")
    data_sets, attack = offering.DataSets.read(kind, data, eval_data), gate.load(kind)
    full = offering.open_model(model, kind, data_sets, attack)
    recipe, split = offering.decide(choice, full, adapter, data_sets.own, record)
    work = work_folder(out, resume)
    made, private = make_offer(
        full, adapter=split, recipe=recipe.steps, data=data_sets.own, task=kind, seed=seed,
        processor=full.processor, device=machine.device, dtype=dtype, name=name,
        expires=offering.expiry(expires_days), side={"prompt_decoder": prompt_decoder},
        reach=parse_reach(reach), leave_out=leave_out or (), resume=resume,
        work=work if any(step.needs.work for step in recipe.steps) else None,
    )  # fmt: skip
    audited = None
    if attack is not None:
        audited = attack.check(full, made, private, path=record, device=place, say=note)
    if not main_process():
        return
    made.save(out, record)
    finish_work(work)
    result, lines = offering.summary(out, record, made, private)
    scored = offering.scored(made, kind, data_sets, place)
    for more, told in (offering.attacked(audited), scored):
        result |= more
        lines += told
    emit(result, json, lines)


@grouped()
def plug(
    model: o.Model,
    delta: Annotated[Path, typer.Argument(help="Folder of the delta.")],
    record: Annotated[Path, typer.Option(help="The private record made with the offer.")],
    out: Annotated[Path, typer.Option(help="Folder of the tuned model; must not exist.")],
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write the delta as an adapter; do not merge it.")
    ] = False,
    prompt_decoder: o.Decoder = None,
    again: Annotated[
        bool, typer.Option("--again", help="Accept a delta that was plugged before.")
    ] = False,
    require_signature: o.RequireSignature = None,
    late: Annotated[
        bool, typer.Option("--late", help="Accept a delta of an expired offer.")
    ] = False,
    json: o.Json = False,
    dtype: o.Dtype = None,
    *,
    decode: DecodeOptions,
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
        decoding=decode.load(),
    )
    if isinstance(plugged, Plugged):
        form = "a peft adapter" if plugged.peft_config else "modules for offsite.load_plugged"
    else:
        form = "a plain transformers checkpoint"
    manifest, words = given.manifest, method_text(given.manifest.method)
    result = {"out": str(out), "delta": manifest.id, "offer": manifest.parent, "form": form}
    emit(result, json, [headed(out, f"{form}: {words} delta {manifest.id[:8]} plugged in")])
