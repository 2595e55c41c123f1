"""What each recipe was said to take before it began, beside what it took.

Every recipe is computed on a pretrained model with few steps. Both figures are seconds of one
thread's own time, so that other work on the machine does not count::

    python -m benchmarks.forecasts build/models/smollm2-135m-instruct --data public.txt
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import offsite as ot
from benchmarks.pairs import timed
from offsite.compress.forecast import one_row, seconds_in
from offsite.compress.step import Context, Step, compress
from offsite.model.checkpoint import Checkpoint
from offsite.model.replay import forward
from offsite.model.split import make_split
from offsite.tasks.data import rows_of
from offsite.tasks.text.causal import CausalText

HALF = 13  # of the 26 blocks in the middle of SmolLM2-135M
RECIPES: dict[str, Sequence[Step]] = {
    "influence": [ot.Drop(keep=HALF, by="influence")],
    "crash": [ot.Cluster(keep=HALF), ot.Share()],
    "distil, 8 steps": [ot.Drop(keep=HALF), ot.Distill(steps=8)],
    "align, 8 steps": [ot.Drop(keep=HALF), ot.Align(steps=8)],
    "scaleot, 8 steps": [ot.LayerReplace(alpha=0.5, steps=8), ot.Rank(beta=0.6)],
    "gradot": [ot.GradOT()],
    "leave-one-out": [ot.Drop(keep=HALF, by="leave_one_out")],
}


def main() -> None:
    """Forecast and run each recipe, and print the rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    args = parser.parse_intermixed_args()  # recipes may stand before the options and after them
    torch.set_num_threads(1)
    full = Checkpoint.of(args.model, "AutoModelForCausalLM")
    model, task = full.load(dtype=torch.float32), CausalText(max_length=args.max_length)
    rows = rows_of(task, args.data, full.processor, model, train=True)
    print("| recipe | said, s | took, s | took / said |\n|---|---|---|---|")
    for name in args.recipes or RECIPES:
        with tempfile.TemporaryDirectory() as work:
            context = Context(
                model, make_split(ot.ends(2, 2), full.total), task, rows, 0, Path(work)
            )
            each = process_seconds(model, one_row(context))
            said = sum(seconds_in(step, context, each) for step in RECIPES[name])
            (_, took), _ = timed(partial(compress, RECIPES[name], context))
        print(f"| {name} | {said:.0f} | {took:.0f} | {took / said:.2f} |", flush=True)


@torch.no_grad()
def process_seconds(model: Any, batch: Any) -> float:
    """This process's own seconds for one forward pass; the first of two is not counted."""
    forward(model, batch)
    return timed(partial(forward, model, batch))[0][1]


if __name__ == "__main__":
    main()
