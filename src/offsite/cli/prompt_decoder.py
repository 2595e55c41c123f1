"""The command that trains a prompt decoder, which offers can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.groups import grouped
from offsite.cli.output import emit, headed
from offsite.training.options import TrainOptions


@grouped(leave_out=("head_lr", "patience", "eval_every", "shard"))
def prompt_decoder(
    model: o.Model,
    data: Annotated[
        list[str],
        typer.Option(help="Public data of one task, PATH or TASK=PATH; give two or more."),
    ],
    out: Annotated[Path, typer.Option(help="File to write (.safetensors); must not exist.")],
    dim: Annotated[int, typer.Option(help="Parameters that a data owner will train.")] = 250,
    length: Annotated[int, typer.Option(help="Length of the prompt in vectors.")] = 16,
    hidden: Annotated[int, typer.Option(help="Width of the decoder's hidden layer.")] = 64,
    task: o.Task = "text",
    max_length: o.MaxLength = o.MAX_LENGTH,
    resume: o.Resume = False,
    device: o.Device = None,
    json: o.Json = False,
    *,
    training: TrainOptions,
) -> None:
    """Train a prompt decoder on public tasks; 'offer' can then ship it."""
    from offsite.deltas.addition.learn_decoder import learn_decoder
    from offsite.exchange.side import SideTensors, save_side
    from offsite.files import check_free
    from offsite.tasks import load_task
    from offsite.tasks.data import read_data
    from offsite.training.processes import main_process
    from offsite.training.resume import finish_work, work_folder

    check_free(out)
    tasks = []
    for given in data:
        name, found, path = given.partition("=")
        name, path = (name, path) if found and not Path(given).exists() else (task, given)
        kind = load_task(name, max_length=max_length)
        tasks.append((kind, read_data(kind, path, train=True)))
    work = work_folder(out, resume)
    tensors = learn_decoder(
        model, tasks, length=length, dim=dim, hidden=hidden, options=training, device=device,
        work=work, resume=resume,
    )  # fmt: skip
    if not main_process():
        return
    group = SideTensors("prompt_decoder", tensors)
    save_side(group, out)
    finish_work(work)
    sizes = {"dim": dim, "length": length, "bytes": group.bytes, "tasks": len(tasks)}
    lines = [
        headed(out, f"prompt decoder learnt on {len(tasks)} tasks"),
        f"  turns        {dim} numbers into {length} vectors, {group.bytes:,} bytes",
        f"  ship it      offsite offer {model} --prompt-decoder {out} ...",
    ]
    emit({"decoder": str(out), **sizes}, json, lines)
