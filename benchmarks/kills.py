"""Kill every command at every file operation, and check what is left and that it can go on.

A command runs in a forked process that kills itself (SIGKILL) just before its n-th operation on a
file below its folder, for every n. After each kill the output is absent or whole, no offer is
without its record, no model without its entry in the ledger, and the same command (with
``--resume`` where there is something to resume) ends in the result of an undisturbed run and leaves
nothing behind. Prints one line a command; exits with 1 if anything was wrong::

    python benchmarks/kills.py --out build/kills [--every 3] [tune plug ...]
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import Counter
from pathlib import Path

from disturbed import CASES, again, digest, run, try_all, wrong  # type: ignore[import-not-found]


def kill_everywhere(name: str, base: Path, every: int) -> int:
    """Kill one command at every operation, print what was found, and return the faults."""
    case, start = CASES[name], time.monotonic()

    def fresh() -> Path:
        folder = base / "run"
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(base / "world", folder))

    folder = fresh()
    status, count, last = run(folder, case.words)
    if status != 0:
        raise SystemExit(f"{name} fails undisturbed: {last}")
    expected, found = digest(folder, case), Counter[str]()
    points = range(1, count + 1, every)
    for point in points:
        folder = fresh()
        run(folder, case.words, point)
        fault = wrong(folder, case) or again(folder, case, expected)
        if fault is not None:
            found[fault[:160]] += 1
            print(f"  {name} at operation {point}: {fault[:300]}", flush=True)
    seconds = time.monotonic() - start
    faults = sum(found.values())
    print(f"| {name} | {count} | {len(points)} | {faults} | {seconds:.0f} |", flush=True)
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th operation only")
    every = parser.parse_known_args()[0].every
    try_all(
        lambda name, base: kill_everywhere(name, base, every), parser,
        "command, operations, kills, faults, seconds",
    )  # fmt: skip
