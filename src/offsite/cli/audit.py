"""Commands that measure leaks: ``audit offer``, ``audit delta``, ``check offer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.output import Lines, emit, headed, note
from offsite.cli.shared import DpOptions
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions

if TYPE_CHECKING:
    from offsite.audit.delta import DeltaAudit
    from offsite.audit.offer import Margin
    from offsite.audit.recovered import OfferAudit

audit_app = typer.Typer(no_args_is_help=True, help="Measure what an offer or a delta reveals.")
check_app = typer.Typer(
    no_args_is_help=True, help="Look for suspicious weights before you trust an offer."
)
Offered = Annotated[Path, typer.Argument(help="Folder of the offer.")]
PublicBase = Annotated[
    str | None, typer.Option(help="A public model that yours may be a fine-tune of.")
]
StandIn = Annotated[
    str | None, typer.Option(help="Data like the tuner's, to measure the margin on.")
]
FullModel = Annotated[
    str | None,
    typer.Option(help="Full model, to measure the leak through the plug-in; with --record."),
]
Candidates = Annotated[
    int,
    typer.Option(
        help="Random codes to compare each secret with; fewer are faster and less exact.",
        min=9, max=99_999,
    ),
]  # fmt: skip


@audit_app.command(
    "offer",
    epilog="Example: offsite audit offer offer/ --model model/ --record offer.record.json --data "
    "public.txt",
)
def audit_offer(
    offer: Offered,
    model: Annotated[str, typer.Option(help="Folder or hub name of the full model.")],
    record: Annotated[Path, typer.Option(help="The private record made with the offer.")],
    data: Annotated[str, typer.Option(help="Public data, which attackers have too.")],
    earlier: o.Earlier = None,
    public_base: PublicBase = None,
    private_data: StandIn = None,
    private_eval: Annotated[
        str | None, typer.Option(help="Data like the tuner's, to score on.")
    ] = None,
    tokens: o.AttackTokens = o.ATTACK_TOKENS,
    rates: o.AttackRates = o.ATTACK_RATES,
    batch_size: o.BatchSize = 8,
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    seed: o.Seed = 0,
    device: o.Device = None,
    json: o.Json = False,
) -> None:
    """Train attackers on an offer and measure how much of the model they recover."""
    from dataclasses import asdict

    import torch

    from offsite.audit.offer import audit_margin
    from offsite.audit.offer import audit_offer as audit
    from offsite.exchange.offer import Offer
    from offsite.exchange.record import Record
    from offsite.model.checkpoint import load_model
    from offsite.tasks import load_task
    from offsite.tasks.data import rows_of
    from offsite.training.devices import pick_device

    if (private_data is None) != (private_eval is None):
        raise OffsiteError(
            "The margin needs both --private-data and --private-eval; give both or neither."
        )
    effort = o.effort(tokens, rates, TrainOptions(batch_size=batch_size, seed=seed))
    private, kind, where = Record.load(record), load_task(task, max_length), pick_device(device)
    made = Offer.load(offer, dtype=torch.float32)
    others = [Offer.load(path, dtype=torch.float32) for path in earlier or ()]
    full = load_model(model, private.auto_class, dtype=torch.float32)
    base = load_model(public_base, private.auto_class) if public_base else None

    def rows(source: str, train: bool = True) -> Any:
        return rows_of(kind, source, made.processor, made.model, train=train)

    found = audit(
        full, made, private, rows(data), kind, device=where, effort=effort, earlier=others,
        base=base, say=note,
    )  # fmt: skip
    margin = None
    if private_data is not None and private_eval is not None:
        seen, unseen = rows(private_data), rows(private_eval, False)
        margin = audit_margin(full, made, private, seen, unseen, kind, device=where, effort=effort)
    result: dict[str, Any] = {**asdict(found), "recovered": found.best.recovered}
    result |= {"learnt": found.learnt}
    result |= {"margin": asdict(margin)} if margin else {}
    emit(result, json, offer_lines(offer, found, margin))


def offer_lines(offer: Path, found: OfferAudit, margin: Margin | None) -> Lines:
    """What attackers recover of an offer, the best one first."""
    lines: Lines = [
        headed(
            offer,
            f"{found.metric}: full model {found.full:.4f}, as shipped {found.shipped:.4f}",
        ),
        *(
            f"  {a.recovered:>7.1%}  {a.name}, {a.tokens:,} tokens ({found.metric} {a.value:.4f})"
            for a in sorted(found.attacks, key=lambda a: -a.recovered)
        ),
        f"  recovered    {found.best.recovered:.1%} of the distance, by: {found.best.name} (at "
        "least; a better attacker gets more)",
    ]
    if not found.learnt:
        lines.append(
            "  caution      random weights, tuned on this data, do as well as the full model; the "
            "shares say nothing, so give data that the model knows"
        )
    if margin is not None:
        lines.append(
            f"  margin       {margin.margin:.4f} (plug-in {margin.plug_in:.4f}, best attacker "
            f"{margin.attacker:.4f}, equal data and steps)"
        )
    return lines


@audit_app.command(
    "delta", epilog="Example: offsite audit delta offer/ --data private.txt --delta lora:rank=8"
)
@grouped(leave_out=("patience", "save_every", "eval_every", "report_to", "head_lr", "shard"))
def audit_delta(
    offer: Offered,
    data: Annotated[str, typer.Option(help="The private text: paragraphs, or .jsonl lines.")],
    delta: Annotated[str, typer.Option(help="Method to tune with, such as lora:rank=8.")] = "full",
    model: FullModel = None,
    record: Annotated[
        Path | None, typer.Option(help="The private record made with the offer, for --model.")
    ] = None,
    canaries: Annotated[
        int, typer.Option(help="Secrets to plant in the data.", min=3, max=999)
    ] = 30,
    candidates: Candidates = 500,
    max_length: o.MaxLength = o.MAX_LENGTH,
    device: o.Device = None,
    json: o.Json = False,
    *,
    dp: DpOptions,
    training: TrainOptions,
) -> None:
    """Tune on half of your data and measure what can be read from the delta."""
    from dataclasses import asdict
    from functools import partial

    import torch

    from offsite.audit.delta import audit_delta as audit
    from offsite.deltas import method_json, parse_method
    from offsite.exchange.offer import Offer
    from offsite.exchange.record import Record
    from offsite.model.checkpoint import load_model
    from offsite.owner.plugging import merge_delta
    from offsite.training.devices import pick_device

    if (model is None) != (record is None):
        raise OffsiteError(
            "The leak through the plug-in needs both --model and --record; give both or neither."
        )
    method, full, plug = parse_method(method_json(delta)), None, None
    if model is not None and record is not None:
        private = Record.load(record)
        full = load_model(model, private.auto_class, dtype=torch.float32)
        plug = partial(merge_delta, full, record=private)
    found = audit(
        Offer.load(offer, dtype=torch.float32), data, method, options=training,
        max_length=max_length, device=pick_device(device), budget=dp.budget(), plug=plug, full=full,
        canaries=canaries, candidates=candidates,
    )  # fmt: skip
    emit(asdict(found), json, delta_lines(delta, canaries, found))


def delta_lines(delta: str, canaries: int, found: DeltaAudit) -> Lines:
    """What can be read from a delta, one line for each model that it is looked at through."""
    return [
        headed(
            delta,
            f"tuned on {found.members} texts and {canaries} secrets; {found.others} texts not seen",
        ),
        *(
            f"  {leak.through:<11} membership AUC {leak.membership.auc:.2f} "
            f"({leak.membership.low:.2f} to {leak.membership.high:.2f}), "
            f"{leak.membership.tpr:.0%} found at 1% false; exposure "
            + ", ".join(f"{bits:.1f} bits ({n} times)" for n, bits in leak.exposure.items())
            + f" of {found.largest:.1f}"
            for leak in found.leaks
        ),
        "  An AUC of 0.5 and an exposure of about 1 are what guessing gives.",
    ]


@check_app.command("offer", epilog="Example: offsite check offer offer/")
def check_offer(
    offer: Offered,
    json: o.Json = False,
) -> None:
    """Look for weights and tokenizers built to capture your data; exit with 1 if there are any."""
    from dataclasses import asdict

    from offsite.audit.suspect import check_offer as check
    from offsite.audit.suspect import not_judged
    from offsite.exchange.offer import Offer

    given = Offer.load(offer)
    found, skipped = check(given), not_judged(given)
    odd = [finding for finding in found if finding.count]
    lines: Lines = [headed(offer, f"{len(odd)} of {len(found)} checks found something odd")]
    lines += [f"  {f.count} {f.what} in {f.where} ({f.share:.1%}): {f.meaning}" for f in odd]
    if skipped is not None:
        lines.append(f"  not judged   {skipped}; --dp-epsilon still protects from traps")
    findings = [asdict(finding) for finding in found]
    emit({"odd": bool(odd), "findings": findings, "not_judged": skipped}, json, lines)
    if odd:
        raise typer.Exit(1)
