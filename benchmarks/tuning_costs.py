"""What a step of tuning costs at real size: seconds, peak memory and bytes of every method.

A LLaMA of random weights (cost does not depend on them) is tuned on random tokens, in all blocks of
the full model, as its owner could, and in the first and last two blocks of the emulator that keeps
8 blocks of the middle, as a tuner does. One process, one GPU, nothing else on it.

    python benchmarks/tuning_costs.py OUT.csv    # --hidden 128 --blocks 14 --length 32 to try it

Seconds are of the steps alone, after a short run that warms up; memory is the peak that torch
allocated, weights included. Weights are float32, computation is autocast to bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from offsite.compress.drop import uniform_indices
from offsite.deltas import METHODS, method_json, parse_method
from offsite.lab.measure import measured
from offsite.model.blocks import assemble, get_blocks
from offsite.tasks.text.causal import CausalText
from offsite.training.devices import pick_device
from offsite.training.options import TrainOptions
from offsite.training.train import train

WARM, STEPS, VOCABULARY = 3, 36, 32000
FEW = ("full", "lora", "bottleneck", "prefix", "prompt", "bitfit")
LEFT_OUT = ("head", "intrinsic_prompt")  # they need a classifier, and a decoder of the owner's
COMBINED = ("lora+bitfit", "lora+bottleneck")


def full_model(hidden: int, blocks: int) -> Any:
    """A LLaMA with attention biases, so that every method has something to tune."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        attention_bias=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def emulator(model: Any, keep: int) -> tuple[Any, list[int]]:
    """The emulator that keeps some of the middle, and its adapter blocks."""
    blocks = list(get_blocks(model))
    middle = [2 + index for index in uniform_indices(len(blocks) - 4, keep)]
    kept = [0, 1, *middle, len(blocks) - 2, len(blocks) - 1]
    return assemble(model, [blocks[i] for i in kept], kept), [0, 1, keep + 2, keep + 3]


def cost(model: Any, blocks: Sequence[int], text: str, batch: int, length: int) -> dict[str, Any]:
    """Tune a copy of a model with one method for a few steps."""
    device = pick_device(None)
    method = parse_method(method_json(text))
    torch.manual_seed(0)
    attached = method.attach(copy.deepcopy(model).to(device), blocks)
    runner = attached.model
    trained = sum(p.numel() for p in runner.parameters() if p.requires_grad)
    tokens = torch.randint(0, VOCABULARY, (batch * STEPS, length))
    rows: Any = [{"input_ids": row, "labels": row} for row in tokens]
    task = CausalText(max_length=length)

    def run(steps: int) -> float:
        options = TrainOptions(steps=steps, batch_size=batch, lr=1e-5, precision="bfloat16")
        done = train(
            runner, rows, loss=task.loss, collate=task.collate, options=options, device=device
        )  # fmt: skip
        return done.seconds / steps

    run(WARM)
    with measured(device) as peak:
        seconds = run(STEPS)
    travel = sum(tensor.nbytes for tensor in attached.tensors().values())
    return {"seconds": seconds, "memory": peak["memory"], "trained": trained, "bytes": travel}


def rows_of(where: str, batch: int) -> tuple[str, ...]:
    """The methods measured in one place at one batch size."""
    every = tuple(kind for kind in METHODS if kind not in LEFT_OUT) + COMBINED
    return every if where == "emulator" and batch == 8 else FEW


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    a = parser.parse_args()
    full = full_model(a.hidden, a.blocks)
    places = {"full model": (full, list(range(a.blocks))), "emulator": emulator(full, 8)}
    with a.out.open("w", newline="") as file:
        keys = ("where", "batch", "method", "seconds", "memory", "trained", "bytes", "weights")
        table = csv.DictWriter(file, keys)
        table.writeheader()
        for where, (model, blocks) in places.items():
            weights = sum(p.nbytes for p in model.parameters())
            for batch in a.batches:
                for method in rows_of(where, batch):
                    found = cost(model, blocks, method, batch, a.length)
                    row = {"where": where, "batch": batch, "method": method, "weights": weights}
                    table.writerow(row | found)
                    file.flush()
                    print(where, batch, method, found, flush=True)
                    gc.collect()  # a tuned model refers to itself and would count in the next peak
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
