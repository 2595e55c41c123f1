"""Mutated packages: open thousands of damaged offers, deltas and records, and count failures.

    python benchmarks/mutated_packages.py --count 100000 --seed 0 --jobs 2

Every case takes a good package, changes one file (bytes, JSON values, or the file set), makes the
hashes agree in three of four cases as a malicious sender would, and opens it. Allowed are an
``OffsiteError`` and a package that opens. Any other exception is a foreign traceback: it is printed
with its case, and the exit status is 1. Nothing is executed and nothing is read outside the folder.
Each of ``--jobs`` processes takes its share of the cases. The packages lie in memory where the
system has a folder for that.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from offsite.compress.drop import Drop
from offsite.compress.noise import Noise
from offsite.compress.quantise import Quantise
from offsite.deltas import parse_method
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.report.inspection import inspect_path
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.forge import seal
from tests.support.models import TEXT, language_model

Opener = Callable[[Path], Any]
MEMORY = Path("/dev/shm")
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**40, 1e308, "", "a" * 5000, "../x", "/etc/passwd", "\x00",
    "\ud800", [], {}, [[]], [None] * 50, {"a": {}}, "float8", "cuda", "auto",
)  # fmt: skip


def packages(folder: Path) -> dict[str, Opener]:
    """Good packages below a folder, each with what opens it."""
    tokenizer = make_tokenizer()
    model = language_model("llama")
    opened: dict[str, Opener] = {}
    recipes: dict[str, list[Any]] = {
        "plain": [Drop(keep=1)],
        "special": [Noise(0.5), Quantise(8, 16)],
    }
    for name, recipe in recipes.items():
        offer, record = make_offer(
            model, adapter=ends(1, 1), recipe=recipe, processor=tokenizer, device="cpu"
        )
        offer.save(folder / name)
        opened[name] = Offer.load
    (text := folder / "text.txt").write_text(TEXT)
    for kind in ("full", "lora"):
        tuned = run_tune(
            offer, str(text), parse_method({"kind": kind}), device="cpu",
            options=TrainOptions(steps=1, batch_size=2),
        )  # fmt: skip
        tuned.delta.save(folder / kind)
        opened[kind] = lambda path: Delta.load(path).values()
    (folder / "record").mkdir()
    record.save(folder / "record" / "record.json")
    opened["record"] = lambda path: Record.load(path / "record.json").verbatim
    return opened


def make_tokenizer() -> Any:
    """The tests' own small tokenizer."""
    from tests.conftest import tokenizer

    return tokenizer.__wrapped__() if hasattr(tokenizer, "__wrapped__") else tokenizer()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document but its top."""
    if isinstance(value, dict):
        inner: Any = value.items()
    else:
        inner = enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def mutate_json(content: Any, draw: random.Random) -> str:
    """Change one value of a JSON document in place, or take it out; returns what was done."""
    path = draw.choice(list(places(content)) or [()])
    if not path:
        return "nothing"
    above = content
    for key in path[:-1]:
        above = above[key]
    if draw.random() < 0.2:
        del above[path[-1]]
        return f"without {path[-1]!r}"
    above[path[-1]] = copy.deepcopy(draw.choice(HOSTILE))
    return f"{path[-1]!r} is {str(above[path[-1]])[:30]!r}"


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat, zero or insert bytes."""
    start = draw.randrange(max(len(data), 1))
    size = draw.choice((1, 8, 64, 1000))
    noise = bytes(draw.randrange(256) for _ in range(size))
    return draw.choice(
        (
            data[:start] + noise + data[start + size :],
            data[:start],
            data[:start] + data[start + size :],
            data[:start] + data[start : start + size] * 2 + data[start + size :],
            data[:start] + bytes(size) + data[start + size :],
            noise + data,
            b"",
        )
    )


def mutate(folder: Path, draw: random.Random) -> str:
    """Damage a package; returns what was done, for the case's line."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    file, kind = draw.choice(files), draw.random()
    if kind < 0.55 and (named := [path for path in files if path.suffix == ".json"]):
        file = draw.choice(named)
        content = json.loads(file.read_text())
        done = mutate_json(content, draw)
        file.write_text(json.dumps(content), errors="surrogatepass")
    elif kind < 0.9:
        file.write_bytes(mutate_bytes(file.read_bytes(), draw))
        done = "bytes"
    elif kind < 0.95:
        file.unlink()
        done = "missing"
    else:
        file.rename(folder / draw.choice(("x", "model.bin", "CON", "a" * 200, ".hidden")))
        done = "renamed"
    if (folder / "manifest.json").is_file() and draw.random() < 0.75:
        try:
            seal(folder)
        except Exception:  # the manifest itself is no JSON any more
            done += ", not sealed"
    return f"{file.name}: {done}"


def attempt(case: int, seed: int, good: Path, bad: Path, opened: Mapping[str, Opener]) -> str:
    """Damage one package and open it: "opened", "refused", or "foreign", which is printed."""
    draw = random.Random(seed * 10**9 + case)
    name = draw.choice(sorted(opened))
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(good / name, bad)
    done = mutate(bad, draw)
    looked = draw.random() < 0.3 and name != "record"
    try:
        inspect_path(bad, None) if looked else opened[name](bad)
    except OffsiteError:
        return "refused"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"case {case} {name} {done}: {type(error).__name__} at {where.filename}:"
              f"{where.lineno}", flush=True)  # fmt: skip
        return "foreign"
    return "opened"


def work(cases: range, seed: int, scratch: Path, opened: Mapping[str, Opener], told: Any) -> None:
    """Every case of one process; queues how many ended how, and the seconds of the slowest."""
    counts, slowest = Counter[str](), 0.0
    for number, case in enumerate(cases):
        if number % 1000 == 0:
            print(f"at case {case}: {dict(counts)}", file=sys.stderr, flush=True)
        start = time.monotonic()
        counts[attempt(case, seed, scratch / "good", scratch / f"bad{cases.start}", opened)] += 1
        slowest = max(slowest, time.monotonic() - start)
    told.put((counts, slowest))


def main() -> int:
    """Run the cases and print one line of counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="The first case, to go on from there.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes that share the cases.")
    options = parser.parse_args()
    begin, system = time.monotonic(), multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        tempfile.tempdir = folder  # for the copies that readers make
        scratch, told = Path(folder), system.SimpleQueue()
        (scratch / "good").mkdir()
        opened = packages(scratch / "good")
        torch.set_num_threads(1)
        shares = [range(options.first + job, options.count, options.jobs)
                  for job in range(options.jobs)]  # fmt: skip
        workers = [system.Process(target=work, args=(share, options.seed, scratch, opened, told))
                   for share in shares]  # fmt: skip
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise SystemExit("a process ended early, so not every case was seen")
        found = [told.get() for _ in workers]
    counts = sum((counted for counted, _ in found), Counter[str]())
    cases, took = options.count - options.first, time.monotonic() - begin
    print(f"{cases} cases, seed {options.seed}: {dict(counts)}; slowest "
          f"{max(slowest for _, slowest in found):.1f} s, {took:.0f} s in all")  # fmt: skip
    return 1 if counts["foreign"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
