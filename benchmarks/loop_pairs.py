"""``offsite tune`` beside a hand-written loop on the same emulator, in pairs.

Each pair tunes LoRA through both, one after the other in one process, in an order that changes from
pair to pair, so that what else the machine does meets both. The loop is
:func:`benchmarks.efficiency.plain_loop`. Times are those of the clock, and those that the process
computed, which a busy machine changes less. What a run of a single step takes is not counted.

    python -m benchmarks.loop_pairs FOLDER --batch 4 --length 128 --steps 8 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

import offsite as ot
from benchmarks.efficiency import (
    device_name,
    offsite_tune,
    plain_loop,
    plainly,
    some_rows,
)
from benchmarks.pairs import Times, timed, times_as_fast
from benchmarks.shapes import full_model


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="a folder, or a shape of benchmarks.shapes")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    a = parser.parse_args()
    model, keep = full_model(a.model)
    offer, _ = ot.make_offer(model, adapter=ot.ends(2, 2), recipe=[ot.Drop(keep=keep)])
    rows = some_rows(model, a.steps * a.batch, a.length)
    loop = plainly(offer.model, offer.manifest.adapter, a.rank)

    def ours(given: Any) -> Any:
        return offsite_tune(offer, given, a)

    def plain(given: Any) -> Any:
        return plain_loop(loop, given, a.batch, 1e-3)

    def net(run: Callable[[Any], Any]) -> Times:
        (clock, computed), _ = timed(lambda: run(rows[: a.batch]))
        (all_clock, all_computed), _ = timed(lambda: run(rows))
        return round(all_clock - clock, 2), round(all_computed - computed, 2)

    found: dict[str, list[Times]] = {"offsite": [], "plain": []}
    for pair in range(a.pairs + 1):
        ways = [("offsite", ours), ("plain", plain)]
        for name, run in ways if pair % 2 else reversed(ways):
            times = net(run)
            if pair:  # the first warms up
                found[name].append(times)
    ratios = times_as_fast(found["offsite"], found["plain"])
    print(
        json.dumps(
            {
                "model": a.model,
                "tokens": (len(rows) - a.batch) * a.length,
                "seconds": found,
                "times_as_fast": [[round(ratio, 2) for ratio in found] for found in ratios],
                "medians": [round(statistics.median(found), 2) for found in ratios],
                "threads": torch.get_num_threads(),
                "device": device_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
