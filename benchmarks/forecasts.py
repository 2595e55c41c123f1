"""What each recipe was said to take before it began, beside what it took.

Every recipe is computed on a pretrained model with few steps by one thread. All figures are
seconds by the clock, as the command measures them. *Its own time* is that of the process alone,
which other work on the machine changes less::

    python -m benchmarks.forecasts build/models/smollm2-135m-instruct --data public.txt
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import offsite as ot
from benchmarks.pairs import timed
from offsite.compress.forecast import decomposed, one_row, seconds_in, seconds_of
from offsite.compress.step import Context, Step, compress
from offsite.model.checkpoint import Checkpoint
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
    print("| recipe | said | took | its own time | took / said |\n|---|---|---|---|---|")
    for name in args.recipes or RECIPES:
        with tempfile.TemporaryDirectory() as work:
            context = Context(
                model, make_split(ot.ends(2, 2), full.total), task, rows, 0, Path(work)
            )
            each, middle = seconds_of(model, one_row(context)), context.split.middle
            said = sum(
                seconds_in(step, context, each, decomposed(step, model, middle))
                for step in RECIPES[name]
            )
            (took, own), _ = timed(partial(compress, RECIPES[name], context))
        print(f"| {name} | {said:.0f} | {took:.0f} | {own:.0f} | {took / said:.2f} |", flush=True)


if __name__ == "__main__":
    main()
