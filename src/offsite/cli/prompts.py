"""The command that learns a prompt decoder, to be shipped in offers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offsite.cli import options as o
from offsite.cli.owner import Model


def prompt_decoder(
    model: Model,
    data: Annotated[
        list[str],
        typer.Option(help="Public data of one task, PATH or TASK=PATH; give two or more."),
    ],
    out: Annotated[Path, typer.Option(help="File to write (.safetensors); must not exist.")],
    dim: Annotated[int, typer.Option(help="Numbers that a tuner will train.")] = 250,
    length: Annotated[int, typer.Option(help="Vectors of a prompt.")] = 16,
    hidden: Annotated[int, typer.Option(help="Width of the decoder's hidden layer.")] = 64,
    task: o.Task = "text",
    steps: o.Steps = None,
    epochs: o.Epochs = 1.0,
    lr: o.Lr = None,
    batch_size: o.BatchSize = 8,
    max_length: o.MaxLength = 256,
    precision: o.Precision = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    seed: o.Seed = 0,
    device: o.Device = None,
    json: o.Json = False,
) -> None:
    """Learn on public tasks what a few numbers can make of a prompt; 'offer' then ships it."""
    from offsite.deltas.addition.learn_decoder import learn_decoder
    from offsite.exchange.prompt_decoder import save_decoder
    from offsite.files import check_free
    from offsite.tasks import check_data, load_task
    from offsite.training.resume import finish_work, work_folder
    from offsite.training.train import TrainOptions

    check_free(out)
    tasks = []
    for given in data:
        name, found, path = given.partition("=")
        name, path = (name, path) if found and not Path(given).exists() else (task, given)
        o.check_source(path)
        kind = load_task(name, max_length=max_length)
        check_data(kind, path)
        tasks.append((kind, path))
    work = work_folder(out, resume)
    options = TrainOptions(
        steps=steps, epochs=epochs, lr=lr, batch_size=batch_size, precision=precision, seed=seed
    )
    tensors = learn_decoder(
        model,
        tasks,
        length=length,
        dim=dim,
        hidden=hidden,
        options=options,
        device=device,
        work=work,
        resume=resume,
    )
    if not o.main_process():
        return
    save_decoder(tensors, out)
    finish_work(work)
    size = sum(tensor.nbytes for tensor in tensors.values())
    result = {"decoder": str(out), "dim": dim, "length": length, "bytes": size, "tasks": len(tasks)}
    lines = [
        f"[bold]{out}[/]  prompt decoder learnt on {len(tasks)} tasks",
        f"  turns        {dim} numbers into {length} vectors, {size:,} bytes",
        f"  ship it      offsite offer {model} --prompt-decoder {out} ...",
    ]
    o.emit(result, json, lines)
