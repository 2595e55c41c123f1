"""Commands of the data owner; they need nothing but the offer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.output import Lines, emit, headed
from offsite.cli.shared import DpOptions, Machine
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions

if TYPE_CHECKING:
    from offsite.deltas.method import Method

Private = Annotated[
    str | None,
    typer.Option(help="Your private data; by default the data that the task file names."),
]
PrivateTest = Annotated[str | None, typer.Option(help="Private data to score on.")]
MethodText = Annotated[
    str,
    typer.Option(
        help="What to tune ('offsite deltas' lists them): lora:rank=8, or lora+bitfit for both."
    ),
]
MethodOption = Annotated[
    list[str] | None, typer.Option(help="Set an option of the method, as NAME=VALUE; repeatable.")
]
OfferTask = Annotated[str | None, typer.Option(help="Kind of data; by default the offer's.")]
delta_app = typer.Typer(
    no_args_is_help=True, help="Import deltas of other tools, and export to them."
)


@grouped()
def tune(
    offer: Annotated[Path, typer.Argument(help="Folder of the offer.")],
    out: Annotated[Path, typer.Option(help="Folder of the delta; must not exist.")],
    data: Private = None,
    eval_data: PrivateTest = None,
    delta: MethodText = "full",
    option: MethodOption = None,
    reach: o.Reach = "adapter",
    task: OfferTask = None,
    max_length: o.MaxLength = o.MAX_LENGTH,
    skip_bad: o.SkipBad = False,
    resume: o.Resume = False,
    require_signature: o.RequireSignature = None,
    details: o.Details = False,
    json: o.Json = False,
    *,
    dp: DpOptions,
    machine: Machine,
    training: TrainOptions,
) -> None:
    """Tune the adapter of an offer on private data and write the delta."""
    from functools import partial

    import torch

    from offsite.cli.results import tuned_json, tuned_lines
    from offsite.exchange.manifest import OfferManifest, parse_reach, read_manifest
    from offsite.exchange.offer import Offer
    from offsite.files import check_free
    from offsite.tasks import load_task
    from offsite.tasks.data import find_source, need_source, prepare_all, read_data
    from offsite.training.processes import main_process
    from offsite.training.resume import finish_work, work_folder
    from offsite.tuner.preparing import check_kind
    from offsite.tuner.tuning import run_tune

    check_free(out)
    offered = read_manifest(offer, OfferManifest).task
    kind = load_task(task or offered, max_length=max_length, skip_bad=skip_bad)
    check_kind(offered, kind)
    private = read_data(kind, need_source(kind, data, "train"), train=True)
    test = read_data(kind, find_source(kind, eval_data, "test"))
    method, dtype = method_for(delta, option, training), machine.precision()
    ready = partial(prepare_all, (private, test))
    loaded = Offer.load(
        offer, dtype=torch.float32, before=ready, require_signature=require_signature
    )
    work = work_folder(out, resume)
    tuned = run_tune(
        loaded, private, method, options=training, eval_data=test, task=kind, dtype=dtype,
        reach=parse_reach(reach), device=machine.device, budget=dp.budget(), work=work,
        resume=resume,
    )  # fmt: skip
    if not main_process():
        return
    tuned.delta.save(out)
    finish_work(work)
    emit(tuned_json(tuned, out, kind, test, details), json, tuned_lines(tuned, out))


def method_for(delta: str, option: Sequence[str] | None, training: TrainOptions) -> Method:
    """The method as it was typed.

    Raises:
        OffsiteError: no such method, or a rate that it does not use.
    """
    from offsite.deltas import method_json, parse_method

    method = parse_method(method_json(delta, option or ()))
    if training.lr is not None and method.kind == "head":
        raise OffsiteError(
            "With --delta head only the head is trained; set its rate with --head-lr instead of "
            "--lr."
        )
    return method


@delta_app.command("import", epilog="Example: offsite delta import offer/ adapter/ --out delta/")
def import_adapter(
    offer: Annotated[Path, typer.Argument(help="Folder of the offer it was trained on.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of a peft adapter.")],
    out: Annotated[Path, typer.Option(help="Folder of the delta; must not exist.")],
    json: o.Json = False,
) -> None:
    """Turn a peft adapter that other tools trained on an offer into a delta."""
    from offsite.exchange.offer import Offer
    from offsite.exchange.wording import few
    from offsite.files import check_free
    from offsite.tuner.importing import import_peft

    check_free(out)
    delta = import_peft(Offer.load(offer), adapter)
    delta.save(out)
    manifest = delta.manifest
    result = {"delta": str(out), "id": manifest.id, "offer": manifest.parent, "bytes": delta.bytes}
    lines: Lines = [headed(out, f"delta {manifest.id[:8]} from {adapter}")]
    if manifest.labels:
        lines.append(f"  head         classes in the offer's order: {few(manifest.labels)}")
    emit(result, json, lines)


@delta_app.command("export", epilog="Example: offsite delta export offer/ delta/ --out plain/")
def export_tensors(
    offer: Annotated[Path, typer.Argument(help="Folder of the offer it answers.")],
    delta: Annotated[Path, typer.Argument(help="Folder of a delta whose method merges.")],
    out: Annotated[Path, typer.Option(help="Folder of the plain delta; must not exist.")],
    json: o.Json = False,
) -> None:
    """Write a delta as plain tensors with the new values, if its method merges."""
    from offsite.exchange.delta import Delta
    from offsite.exchange.offer import Offer
    from offsite.files import check_free
    from offsite.tuner.exporting import plain_delta

    check_free(out)
    plain = plain_delta(Delta.load(delta), Offer.load(offer))
    plain.save(out)
    result = {"delta": str(out), "id": plain.manifest.id, "bytes": plain.bytes}
    emit(result, json, [headed(out, f"{plain.bytes:,} bytes in plain tensors")])
