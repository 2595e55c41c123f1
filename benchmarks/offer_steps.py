"""Time and peak memory of making an offer of a large model without a GPU, step by step.

Writes a sharded LLaMA checkpoint of random weights in bfloat16, by default of LLaMA-7B's shape, and
makes an offer of it by one recipe after another, each in a process of its own, on random tokens.
``own_gib`` is the peak of the process's own memory; pages of the checkpoint that the system keeps
while there is room, and drops at need, are in ``resident_gib`` too. Linux only.

    python -m benchmarks.offer_steps OUT.csv --folder FOLDER --recipes drop influence crash
    python -m benchmarks.offer_steps OUT.csv --hidden 1024    # the same depth, at a quarter of it
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import offsite as ot
from benchmarks.offer_memory import status
from offsite.compress import parse_recipe

GIB = 2**30
RECIPES: dict[str, list[dict[str, Any]]] = {
    "drop": [{"kind": "drop", "keep": 8}],
    "int4": [{"kind": "quantise", "bits": 4}],
    "influence": [{"kind": "drop", "keep": 8, "by": "influence"}],
    "crash": [{"kind": "cluster", "keep": 8}, {"kind": "share"}],
    "narrow": [{"kind": "narrow", "feed_forward": 0.5}],
    "rank": [{"kind": "rank", "beta": 0.75}],
    "gradot": [{"kind": "gradot", "attention": 0.5, "feed_forward": 0.5, "batches": 1}],
}


def write_checkpoint(folder: Path, hidden: int, blocks: int, shard: int = 2 * GIB) -> None:
    """A LLaMA of random weights in bfloat16, in shards of about ``shard`` bytes."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,  # 11008 of 4096
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    folder.mkdir(parents=True)
    groups: list[list[str]] = [[]]
    for name, tensor in state.items():
        if sum(state[n].numel() * 2 for n in groups[-1]) + tensor.numel() * 2 > shard:
            groups.append([])
        groups[-1].append(name)
    where: dict[str, str] = {}
    torch.manual_seed(0)
    for number, names in enumerate(filter(None, groups), 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: weights(state[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    total = sum(tensor.numel() * 2 for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights(like: torch.Tensor) -> torch.Tensor:
    """Ones for a norm, else normal values of deviation 0.02: a few million, again and again.

    A matrix starts anywhere in them, so that no two are alike.
    """
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=torch.bfloat16)
    start = int(torch.randint(len(values := drawn()), ()))
    times = like.numel() // len(values) + 1
    return torch.cat([values[start:], *[values] * times])[: like.numel()].view(like.shape)


@cache
def drawn(count: int = 4_000_037) -> torch.Tensor:
    """Normal values of deviation 0.02; a prime number of them, so that rows of a matrix differ."""
    return torch.empty(count, dtype=torch.bfloat16).normal_(0, 0.02)


def attempt(
    folder: Path, out: Path, recipe: list[dict[str, Any]], count: int, length: int,
    limit: float | None, send: Any,
) -> None:  # fmt: skip
    """Make and save one offer; send its seconds, peaks and bytes, or what went wrong."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GIB),) * 2)
    draw = torch.randint(32000, (count, length), generator=torch.Generator().manual_seed(0))
    rows: Any = [{"input_ids": row, "labels": row} for row in draw]
    peak, stop = {"RssAnon": 0, "VmRSS": 0}, threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for key in peak:
                peak[key] = max(peak[key], status(key))

    thread = threading.Thread(target=watch)
    thread.start()
    began, error = time.perf_counter(), ""
    try:
        steps = parse_recipe(recipe)
        data = rows if any(step.needs.data for step in steps) else None
        offer, _ = ot.make_offer(folder, adapter=ot.ends(2, 2), recipe=steps, data=data)
        offer.save(out)
    except Exception as problem:
        error = str(problem)
    stop.set()
    thread.join()
    send.send({
        "seconds": round(time.perf_counter() - began),
        "own_gib": round(peak["RssAnon"] / GIB, 2),
        "resident_gib": round(peak["VmRSS"] / GIB, 2),
        "error": error,
    })  # fmt: skip


def in_process(*arguments: Any) -> dict[str, Any]:
    """What :func:`attempt` finds in a fresh process, whose memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=attempt, args=(*arguments, send))
    process.start()
    send.close()
    found: dict[str, Any] = receive.recv()
    process.join()
    return found


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, help="for the checkpoint; kept, and used again")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--rows", type=int, default=256, help="of data")
    parser.add_argument("--length", type=int, default=8, help="tokens of a row of data")
    parser.add_argument("--memory", type=float, help="GiB of its own that a process may have")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, a.out.open("w", newline="") as file:
        folder = a.folder or Path(scratch) / "model"
        if not folder.exists():
            write_checkpoint(folder, a.hidden, a.blocks)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        table = None
        for name in a.recipes:
            out = Path(scratch) / "offer"
            found = in_process(folder, out, RECIPES[name], a.rows, a.length, a.memory)
            bytes_ = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            shutil.rmtree(out, ignore_errors=True)
            row = {
                "recipe": name,
                "model_gib": round(size / GIB, 2),
                "offer_gib": round(bytes_ / GIB, 2),
                **found,
                "rows": a.rows,
                "length": a.length,
                "limit_gib": a.memory or "",
                "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            }
            table = table or csv.DictWriter(file, row)
            if file.tell() == 0:
                table.writeheader()
            table.writerow(row)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
