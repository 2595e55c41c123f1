"""How much memory does making a drop-only offer take? Less than the model, and here is the proof.

Writes a sharded LLaMA checkpoint of random-looking numbers, then makes and saves an offer from it
in a child process whose data segment (``RLIMIT_DATA``: anonymous memory and private mappings) is
capped at what it has before + the kept tensors + one shard + slack (for the interpreter, thread
stacks and one tensor in passing). Under the same cap the whole model must fail to load. Linux only.

    python benchmarks/offer_memory.py --hidden 2048 --blocks 32 --keep 4 --shard 200
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MB = 2**20


def status(key: str) -> int:
    """A figure of this process from the kernel, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def write_checkpoint(folder: Path, hidden: int, blocks: int, shard: int, send: Any) -> None:
    """A float32 LLaMA of ``blocks`` blocks in shards of about ``shard`` bytes, one at a time.

    Sends the bytes of a block, and of everything outside the block list.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        dtype="float32",
    )
    with torch.device("meta"):
        state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    groups: list[list[str]] = [[]]
    for name, tensor in state.items():
        if groups[-1] and sum(state[n].nbytes for n in groups[-1]) + tensor.nbytes > shard:
            groups.append([])
        groups[-1].append(name)
    where: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {n: torch.full(state[n].shape, 1e-3 * (i + number)) for i, n in enumerate(names)}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    block = sum(t.nbytes for n, t in state.items() if n.startswith("model.layers.0."))
    send.send((block, total - blocks * block))


def attempt(folder: Path, out: Path, keep: int, allowance: int, whole: bool, send: Any) -> None:
    """Make the offer (or load the whole model) with ``allowance`` bytes more than at the start."""
    from offsite.compress.drop import Drop
    from offsite.model.checkpoint import build_skeleton, load_model
    from offsite.model.configuration import load_config
    from offsite.model.split import ends
    from offsite.owner.offering import make_offer

    threading.stack_size(MB)  # a stack counts in full from the start
    build_skeleton(load_config(folder), "AutoModelForCausalLM")  # transformers imports models late
    base, anonymous = status("VmData"), status("RssAnon")
    resource.setrlimit(resource.RLIMIT_DATA, (base + allowance, base + allowance))
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], status("RssAnon") - anonymous)

    thread = threading.Thread(target=watch)
    thread.start()
    began, error = time.perf_counter(), None
    try:
        if whole:
            load_model(folder)
        else:
            offer, _ = make_offer(folder, adapter=ends(1, 1), recipe=[Drop(keep=keep)])
            offer.save(out)
    except (OSError, RuntimeError, ValueError, MemoryError) as problem:
        error = f"{problem} ({problem.__cause__})"
    stop.set()
    thread.join()
    send.send({"error": error, "peak": peak[0], "seconds": time.perf_counter() - began})


def in_child(function: Any, *arguments: Any) -> Any:
    """The result of a function in a forked process, whose limits and memory are its own."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=function, args=(*arguments, send))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return result


def measure(hidden: int, blocks: int, keep: int, shard: int, slack: int) -> dict[str, Any]:
    """Try both; sizes in bytes."""
    import torch

    import offsite.compress.drop
    import offsite.owner.offering  # noqa: F401 (before the fork)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "model", Path(name) / "offer"
        folder.mkdir()
        block, ends = in_child(write_checkpoint, folder, hidden, blocks, shard)
        kept = ends + (keep + 2) * block
        files = [path.stat().st_size for path in folder.glob("*.safetensors")]
        allowance = kept + max(files) + slack
        offer = in_child(attempt, folder, out, keep, allowance, False)
        whole = in_child(attempt, folder, out, keep, allowance, True)
        made = (out / "manifest.json").is_file() and not offer["error"]
    return {
        "model": sum(files), "shards": len(files), "largest_shard": max(files), "kept": kept,
        "allowance": allowance, "offer_made": made, "offer_peak": offer["peak"],
        "offer_seconds": round(offer["seconds"], 1), "offer_error": offer["error"],
        "whole_model_loads": not whole["error"], "whole_model_error": whole["error"],
    }  # fmt: skip


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--shard", type=int, default=25, help="MiB")
    parser.add_argument("--slack", type=int, default=32, help="MiB")
    a = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # so that what is freed goes back at once
        settings = {
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    print(json.dumps(measure(a.hidden, a.blocks, a.keep, a.shard * MB, a.slack * MB), indent=1))


if __name__ == "__main__":
    main()
