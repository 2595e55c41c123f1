"""What teaching an emulator costs: tokens per second of Align and Distill beside plain loops.

The plain loops compute as a first version would: both models in float32, and the middle run once
for the emulator's loss and once more on the teacher's states. Random weights of the true shapes.

    python -m benchmarks.teaching OUT.csv --models opt-1.3b

Each row is timed as the difference between a run of few steps and one of more, so that what a run
needs before its first step does not count.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import offsite as ot
from benchmarks.efficiency import device_name, some_rows
from benchmarks.shapes import SHAPES, full_model
from offsite.compress.align import outlets, state_error
from offsite.compress.distill import segment_error
from offsite.compress.step import Context, Step
from offsite.compress.student import make_student
from offsite.lab.measure import measured
from offsite.model.blocks import get_blocks
from offsite.model.replay import observe, record_calls
from offsite.model.split import Middle, ends, whole_middle
from offsite.tasks.text.causal import CausalText
from offsite.training.devices import pick_device

Teach = Callable[[int], None]


def plain(context: Context, middle: Middle, batch: int, loss: Any) -> Teach:
    """A loop of AdamW over the student, all in float32."""

    def teach(steps: int) -> None:
        student, emulator = make_student(middle, context)
        trained = [p for block in student.blocks for p in block.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        for given in context.batches(steps, batch):
            value = loss(context, student, emulator, given)
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        float(value)

    return teach


def distil_loss(context: Context, student: Middle, emulator: Any, batch: Mapping[str, Any]) -> Any:
    """Task loss of the emulator plus 30 times the error of the middle on the teacher's states."""
    with torch.no_grad():
        calls = observe(context.model, batch)
    task = emulator(**batch, use_cache=False).loss
    return task + 30 * segment_error(context, student, calls)


def align_loss(context: Context, student: Middle, emulator: Any, batch: Mapping[str, Any]) -> Any:
    """Errors of the states that leave the middle, and divergence of the predictions."""
    pairs = outlets(context.split, student.positions)
    ids = batch["input_ids"]
    with torch.no_grad(), record_calls(context.model) as targets:
        wanted = context.model(ids, use_cache=False).logits
    with record_calls(emulator) as states:
        found = emulator(ids, use_cache=False).logits
    errors = [state_error(states[own].output, targets[theirs]) for theirs, own in pairs]
    told, said = wanted.float().log_softmax(-1), found.float().log_softmax(-1)
    divergence = (told.exp() * (told - said)).sum(-1).mean()
    return torch.stack(errors).mean() + divergence


def ours(context: Context, middle: Middle, make: Callable[[int], Step]) -> Teach:
    """A step of a recipe, as ``offsite offer`` runs it."""

    def teach(steps: int) -> None:
        make(steps)(middle, context)

    return teach


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    a = parser.parse_args()
    with a.out.open("w", newline="") as file:
        table = None
        for name in a.models:
            for row in rows(name, a):
                table = table or csv.DictWriter(file, row)
                if file.tell() == 0:
                    table.writeheader()
                table.writerow(row)
                file.flush()
                print(row, flush=True)


def rows(name: str, a: Any) -> Any:
    """The cost of every way for one model."""
    model, keep = full_model(name)
    model.to(pick_device()).requires_grad_(False)
    split = ends(2, 2)(len(get_blocks(model)))
    data: Any = some_rows(model, a.steps * a.batch + 16, a.length)
    context = Context(model, split, CausalText(max_length=a.length), data)
    middle = ot.Drop(keep=keep)(whole_middle(model, split), context)
    ways = {
        "align": ours(context, middle, lambda n: ot.Align(steps=n, batch_size=a.batch)),
        "distill": ours(context, middle, lambda n: ot.Distill(steps=n, batch_size=a.batch)),
        "align, plain": plain(context, middle, a.batch, align_loss),
        "distill, plain": plain(context, middle, a.batch, distil_loss),
    }
    for way, teach in ways.items():
        seconds = []
        with measured(pick_device()) as cost:
            for steps in (a.few, a.few, a.steps):  # the first warms up
                start = time.perf_counter()
                teach(steps)
                seconds.append(time.perf_counter() - start)
        yield {
            "model": name,
            "way": way,
            "tokens_per_second": round(
                (a.steps - a.few) * a.batch * a.length / (seconds[2] - seconds[1])
            ),
            "peak_mib": round(cost["memory"] / 2**20),
            "device": device_name(),
        }
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
