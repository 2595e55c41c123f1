"""What tuning costs: tokens per second and peak memory, from full fine-tuning to ``offsite tune``.

The table of Offsite-Tuning (arXiv 2302.04870, table 5) on whatever device there is, in one run.
Random weights of the true shapes and random tokens will do, since cost does not depend on them; a
folder tunes the checkpoint that is in it. Columns:

    full    every parameter of the full model, float32 weights, computed in bfloat16 on a GPU
    lora    LoRA on every block of the full model
    plain   thirty lines of PyTorch: LoRA on the first and last two blocks of the emulator
    float32 offsite tune --precision float32 --no-compile, for its loss curve and its cost
    offsite offsite tune, no flags
    float8  offsite tune --precision float8, on a GPU that multiplies it
    int4    the same on an offer whose middle is in 4 bits
    shard   offsite tune --shard, under torchrun

    python -m benchmarks.efficiency OUT.csv --models gpt2-xl opt-1.3b --picture OUT.png
    python -m benchmarks.efficiency OUT.csv --models FOLDER --batch 2 --length 256 --steps 10
    torchrun --nproc-per-node 2 -m benchmarks.efficiency OUT.csv --columns offsite shard

Each column runs a few steps to warm up (``first_seconds``, compiling included), then is timed. On a
GPU the columns of offsite take at least the steps from which ``tune`` compiles by itself. Their
tokens per second are those after the first fifth of the steps; ``seconds`` are those of the whole
run, which starts, compiles again and ends. Memory is the peak that torch allocated there, weights
included; on a CPU it is that of the process. ``curve`` is the largest difference at one step
between the losses of this column and of the first column of offsite's, as a share. Under torchrun
each process takes ``--batch`` rows, and the tokens of all processes count.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import offsite as ot
from benchmarks.shapes import SHAPES, full_model
from offsite.exchange.offer import Offer
from offsite.lab.measure import measured
from offsite.model.blocks import get_blocks
from offsite.tasks.text.causal import CausalText
from offsite.training.compiling import WORTH
from offsite.training.devices import pick_device
from offsite.training.processes import main_process, process_count

COLUMNS = ("offsite", "full", "plain", "lora", "int4", "float32", "float8", "shard")
PLAIN = ("full", "lora", "plain")
ALONE = COLUMNS[:-2]  # those of one process, on any device
WARM = 4


@dataclass(frozen=True)
class Run:
    """Seconds of a run and of one of its steps, and losses along it."""

    seconds: float
    step: float
    losses: list[float]


@dataclass(frozen=True)
class Timed(CausalText):
    """Text that notes when each batch is made."""

    made: list[float] = field(default_factory=list)

    def collate(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """A batch; see :class:`~offsite.tasks.text.causal.CausalText`."""
        self.made.append(time.perf_counter())
        return super().collate(rows)

    def steady(self) -> float:
        """Seconds of a step after the first fifth of them.

        A batch is made one step ahead. ``tune`` waits for the device where it reports a loss, fifty
        times in a run, so only times just after a report are compared.
        """
        every = max(1, len(self.made) // 50)
        first = 1 + len(self.made) // 5 // every * every
        last = 1 + (len(self.made) - 2) // every * every
        return (self.made[last] - self.made[first]) / max(1, last - first)


def some_rows(model: Any, count: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, some of them far more frequent than others, so that there is what to learn."""
    draw = torch.rand((count, length), generator=torch.Generator().manual_seed(0))
    tokens = (draw**6 * (model.config.vocab_size - 1)).long()
    return [{"input_ids": row, "labels": row} for row in tokens]


def plain_loop(model: Any, rows: Sequence[Any], batch: int, lr: float) -> Run:
    """Thirty lines of PyTorch: what tuning costs without this package."""
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, fused=True)
    losses = []
    model.train()
    start = time.perf_counter()
    for first in range(0, len(rows), batch):
        ids = torch.stack([row["input_ids"] for row in rows[first : first + batch]]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    found = [float(loss) for loss in losses]  # waits for the device
    seconds = time.perf_counter() - start
    return Run(seconds, seconds / len(found), found)


def plainly(model: Any, blocks: Sequence[int] | None, rank: int) -> Any:
    """A copy of a model to tune in a plain loop: all of it, or LoRA in some blocks."""
    device = pick_device()
    model = copy.deepcopy(model)
    if blocks is None:
        return model.to(device).requires_grad_(True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return ot.LoRA(rank=rank).attach(model.to(device, dtype), blocks).model


def offsite_tune(offer: ot.Offer, rows: Sequence[Any], a: Any, **options: Any) -> Run:
    """What ``offsite tune`` runs."""
    chosen = ot.TrainOptions(steps=len(rows) // a.batch, batch_size=a.batch, **options)
    task = Timed()
    history = ot.run_tune(offer, rows, ot.LoRA(rank=a.rank), options=chosen, task=task).history
    losses = [point["loss"] for point in history.points if "loss" in point]
    return Run(history.seconds, task.steady(), losses)


def columns(name: str, a: Any) -> Iterator[dict[str, Any]]:
    """The cost of every column for one model."""
    model, keep = full_model(name)
    compiles, world = pick_device().type == "cuda", process_count()
    steps = max(a.steps, WORTH) if compiles else a.steps
    rows = some_rows(model, steps * a.batch * world, a.length)
    few, warm = rows[: a.plain_steps * a.batch], rows[: WARM * a.batch * world]
    curve: list[float] = []  # the losses of the first column of offsite's

    @cache
    def offer(*recipe: Any) -> Offer:
        steps = [ot.Drop(keep=keep), *recipe]
        return ot.make_offer(model, adapter=ot.ends(2, 2), recipe=steps)[0]

    def tune(offered: Offer, **options: Any) -> Callable[[Any], Run]:
        return lambda given: offsite_tune(offered, given, a, **options)

    def plain(module: Any, blocks: Sequence[int] | None, lr: float) -> Callable[[Any], Run]:
        made = plainly(module, blocks, a.rank)
        return lambda given: plain_loop(made, given, a.batch, lr)

    def ours(offered: Offer, **options: Any) -> tuple[Callable[[Any], Run], Callable[[Any], Run]]:
        return tune(offered, compile=compiles, **options), tune(offered, **options)

    total = range(len(get_blocks(model)))
    uncut = {"precision": "float32", "compile": False}
    makers: dict[str, Callable[[], tuple[Callable[[Any], Run], Callable[[Any], Run]]]] = {
        "float32": lambda: (tune(offer(), **uncut),) * 2,
        "offsite": lambda: ours(offer()),
        "float8": lambda: ours(offer(), precision="float8"),
        "int4": lambda: ours(offer(ot.Quantise(bits=4))),
        "plain": lambda: (plain((o := offer()).model, o.manifest.adapter, 3e-3),) * 2,
        "lora": lambda: (plain(model, total, 3e-3),) * 2,
        "full": lambda: (plain(model, None, 1e-5),) * 2,
        "shard": lambda: ours(offer(), shard=True),
    }
    for column in (name for name in a.columns if name in makers):
        first, run = makers[column]()
        begun = first(warm)
        given = few if column in PLAIN else rows
        with measured(pick_device()) as cost:
            done = run(given)
        curve = curve or ([] if column in PLAIN else done.losses)
        yield {
            "model": name,
            "column": column,
            "processes": world,
            "tokens_per_second": round(a.batch * world * a.length / done.step),
            "peak_mib": round(cost["memory"] / 2**20),
            "first_seconds": round(begun.seconds, 1),
            "seconds": round(done.seconds, 1),
            "loss": round(sum(done.losses) / len(done.losses), 4),
            "curve": "" if column in PLAIN else off(done.losses, curve),
            "device": device_name(),
            "torch": torch.__version__,
        }
        del first, run
        gc.collect()
        torch.cuda.empty_cache()


def off(losses: Sequence[float], others: Sequence[float]) -> str:
    """The largest difference between two loss curves at one step, as a share."""
    pairs = zip(losses, others, strict=True)
    return f"{max(abs(one / other - 1) for one, other in pairs):.4f}"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of tokens per second beside bars of memory, one panel a model and measure."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(8, 0.6 + 2.2 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), 2, squeeze=False)
    for line, model in zip(panels, models, strict=True):
        own = [row for row in rows if row["model"] == model][::-1]
        for panel, key, unit in zip(
            line, ("tokens_per_second", "peak_mib"), ("tokens per second", "peak MiB"), strict=True
        ):
            bars = panel.barh([row["column"] for row in own], [row[key] for row in own])
            panel.bar_label(bars, fmt="{:,.0f}", padding=3)
            panel.margins(x=0.25)
            panel.set_xticks([])  # the bars have labels
            panel.set_title(f"{model}: {unit}")
    figure.savefig(path)


def device_name() -> str:
    """What the figures are of."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--columns", nargs="+", default=ALONE, choices=COLUMNS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=WORTH)
    parser.add_argument("--plain-steps", type=int, default=20)
    parser.add_argument("--memory", type=float, help="GiB; let a GPU have no more than these")
    parser.add_argument("--picture", type=Path, help="draw the table into this file")
    a = parser.parse_args()
    if a.memory:
        whole = torch.cuda.get_device_properties(pick_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(a.memory * 2**30 / whole)
    found: list[dict[str, Any]] = []
    with a.out.open("w", newline="") if main_process() else open(os.devnull, "w") as file:
        for name in a.models:
            for row in columns(name, a):
                found.append(row)
                table = csv.DictWriter(file, row)
                if len(found) == 1:
                    table.writeheader()
                table.writerow(row)
                file.flush()
                if main_process():
                    print(row, flush=True)
    if a.picture and main_process():
        draw(found, a.picture)


if __name__ == "__main__":
    main()
