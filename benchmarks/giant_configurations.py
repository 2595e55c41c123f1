"""Giant configurations of every causal language family: refused in time, or read.

Each family that can be built tiny is offered. Then every integer of the offer's config.json, one
after the other, is set to a giant, and the forged offer is opened in a process of its own that may
use 4 s of processor time and 200 MB. A forgery that is refused with one sentence or that is read
within these limits is as it must be. Any other exception, and a process that the system stops, is a
fault: it is printed, and the exit status is 1::

    python benchmarks/giant_configurations.py --out build/giants.jsonl [--share 1/4] [FAMILY ...]
    python benchmarks/giant_configurations.py --out build/giants.jsonl --table

Several shares may write to one file. ``--table`` counts what it holds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from tiny_families import build, first_line  # type: ignore[import-not-found]
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import offsite as ot
from tests.support.giants import forged, integers, outcome
from tests.support.limited import limited

SECONDS = 120
SLOW = 1.0  # seconds of processor time in which a refusal is promised


def main() -> int:
    """Read the command line and run a share of the families, or count what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--share", default="1/1", help="which part of the families, such as 2/4")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit to build a family")
    parser.add_argument("--table", action="store_true", help="count what --out holds instead")
    parser.add_argument("families", nargs="*")
    args = parser.parse_args()
    if not args.table:
        transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        part, of = (int(number) for number in args.share.split("/"))
        for family in args.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)[part - 1 :: of]:
            with args.out.open("a") as file:
                file.write(json.dumps(judge(family, args.seconds)) + "\n")
    return count([json.loads(line) for line in args.out.read_text().splitlines()])


def judge(family: str, seconds: int) -> dict[str, Any]:
    """What became of each forgery of a family: seconds of processor time and words, by its key."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = Path(folder) / "offer"
            offered(family, made, seconds)
        except (ot.OffsiteError, TimeoutError) as error:
            return {"family": family, "not_offered": first_line(error) or "too slow"}
        except Exception as error:  # whatever a family raises at this size
            return {"family": family, "not_offered": f"{type(error).__name__}"}
        content = json.loads((made / "config.json").read_text())
        if (told := forgery(made, content)[1]) != "read":  # the offer itself needs too much
            return {"family": family, "not_offered": f"untouched it is not read: {told}"}
        found = {".".join(p): forgery(made, forged(content, p)) for p in integers(content)}
    return {"family": family, "found": found}


def offered(family: str, folder: Path, seconds: int) -> None:
    """Write an offer of a tiny model of a family.

    Raises:
        TimeoutError: not done in so many seconds.
    """

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        model = build(family)
        offer, _ = ot.make_offer(model, adapter=ot.ends(2, 2), recipe=[ot.Drop(keep=2)])
        offer.save(folder, folder.with_name("record.json"))
        ot.Offer.load(folder)
    finally:
        signal.alarm(0)


def forgery(folder: Path, content: Any) -> tuple[float, str]:
    """Processor seconds and outcome of one forged configuration."""

    def timed() -> str:
        begin = time.process_time()
        told = outcome(folder, content)
        return f"{time.process_time() - begin:.2f} {'read' if told == 'read' else 'refused'}"

    told = limited(timed)
    seconds, _, words = told.partition(" ")
    return (float(seconds), words) if words in ("read", "refused") else (0.0, told[:200])


def count(families: list[dict[str, Any]]) -> int:
    """Print what was found; 1 if anything but a refusal or a reading was."""
    found = [
        (f["family"], key, *value) for f in families for key, value in f.get("found", {}).items()
    ]
    faults = [case for case in found if case[3] not in ("read", "refused")]
    slow = [case for case in found if case[2] > SLOW and case[3] == "refused"]
    for family, key, seconds, words in (*faults, *slow):
        print(f"{family} {key}: {seconds:.2f} s, {words}")
    offers = [family for family in families if "found" in family]
    print(
        f"{len(found)} configurations of {len(offers)} families ({len(families) - len(offers)} not "
        f"offered): {sum(case[3] == 'refused' for case in found)} refused, "
        f"{sum(case[3] == 'read' for case in found)} read, {len(faults)} faults; slowest refusal "
        f"{max((case[2] for case in found if case[3] == 'refused'), default=0):.2f} s, "
        f"{len(slow)} over {SLOW} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
