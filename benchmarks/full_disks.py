"""Run every command on disks that are too small, and check that nothing is lost (Linux, as root).

Each command writes to a tmpfs of a few sizes. On one that is too small it must say so in one
sentence with exit status 2 and leave nothing half written; once the disk is larger, the same
command (with ``--resume`` where there is something to resume) must end in the result of an
undisturbed run.
Prints one line a command; exits with 1 if anything was wrong::

    python benchmarks/full_disks.py --out build/full [tune plug ...]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from disturbed import CASES, again, digest, run, try_all, wrong  # type: ignore[import-not-found]

SIZES = (4, 12, 20, 32, 48, 72, 104, 144, 200)  # KiB beyond what lies there before the command


def mounted(disk: Path, kibibytes: int, *more: str) -> None:
    """Mount a tmpfs of a size, or change the size of one that is mounted."""
    options = ",".join([*more, f"size={kibibytes}k"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def fill(name: str, base: Path) -> int:
    """Run one command on every size; prints what was found and returns the number of faults."""
    case, disk, faults, full = CASES[name], base / "disk", 0, 0
    reference = base / "reference"
    shutil.copytree(base / "world", reference)
    status, _, last = run(reference, case.words)
    if status != 0:
        raise SystemExit(f"{name} fails undisturbed: {last}")
    expected = digest(reference, case)
    shutil.rmtree(reference)
    used = int(subprocess.check_output(["du", "-sk", base / "world"]).split()[0])
    for size in SIZES:
        disk.mkdir(exist_ok=True)
        mounted(disk, used + size)
        try:
            folder = Path(shutil.copytree(base / "world", disk / "run"))
            status, _, last = run(folder, case.words)
            fault = wrong(folder, case)
            if status != 0:
                full += 1
                if status != 2 or "the disk is full" not in last:
                    fault = fault or f"status {status}: {last}"
                if hidden := [p.name for p in folder.iterdir() if p.name.startswith(".")]:
                    fault = fault or f"left behind: {hidden[0]}"
            mounted(disk, 65536, "remount")
            fault = fault or again(folder, case, expected)
        finally:
            subprocess.run(["umount", disk], check=True)
        if fault:
            faults += 1
            print(f"  {name} with {size} KiB: {fault[:300]}", flush=True)
    print(f"| {name} | {len(SIZES)} | {full} | {faults} |", flush=True)
    return faults


if __name__ == "__main__":
    try_all(fill, argparse.ArgumentParser(description=__doc__), "command, sizes, too small, faults")
