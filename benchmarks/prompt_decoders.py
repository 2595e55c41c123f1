"""How far 250 numbers go, by what the decoder behind them was learnt on.

One decoder is learnt and tuned through: no compression at all (``whole``, where the emulator is the
full model), the emulator of deltas.toml and that of deltas_noise.toml. ``plain`` is a prompt
without a decoder; ``owner`` is what the owner reaches alone, by tuning on public WikiText articles.

    python benchmarks/prompt_decoders.py OUT.jsonl alike 3         # decoder, seeds; see prepare.py

It appends one line a row; on one GPU of its own a decoder takes about four minutes to learn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from offsite.compress import parse_recipe
from offsite.deltas import IntrinsicPrompt, Method, Prompt
from offsite.deltas.addition.learn_decoder import learn_decoder
from offsite.exchange.side import SideTensors, attach_side
from offsite.model.checkpoint import load_model, load_processor
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks import load_task
from offsite.tasks.data import rows_of
from offsite.tasks.task import Task
from offsite.training.devices import pick_device
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune

INPUT = Path("build/bench")
MODEL = INPUT / "bookling-31m"
Sources = list[tuple[str, str]]

FEW: Sources = [
    ("sciq", "qa/sciq/val.jsonl"),
    ("piqa", "qa/piqa/train.jsonl"),
    ("arc_easy", "qa/arc_easy/train.jsonl"),
    ("openbookqa", "qa/openbookqa/train.jsonl"),
]
MORE: Sources = [("csqa", "qa/csqa/train.jsonl"), ("arc_challenge", "qa/arc_challenge/train.jsonl")]
BOOKS: Sources = [("text", f"public/book{i:02}.txt") for i in range(24)]
WIKI: Sources = [("text", f"public/wiki{i:02}.txt") for i in range(6)]


@dataclass(frozen=True)
class Learning:
    """What a decoder is learnt on, and how."""

    sources: Sources
    steps: int = 2000
    batch_size: int = 16
    lr: float = 1e-2
    options: dict[str, Any] = field(default_factory=dict)


DECODERS = {
    "plain": None,
    "few": Learning([*FEW, ("text", "books.txt")], 3000, 8, 3e-3),
    "many": Learning([*FEW, *MORE, *BOOKS], 3000, 16, 3e-3),
    "many, slow": Learning([*FEW, *MORE, *BOOKS], 3000, 16, 1e-3),
    "many, wide": Learning([*FEW, *MORE, *BOOKS], 3000, 16, 3e-3, {"hidden": 256}),
    "many, fast": Learning([*FEW, *MORE, *BOOKS]),
    "alike": Learning([*FEW, *MORE, *BOOKS, *WIKI]),
    "alike, slow": Learning([*FEW, *MORE, *BOOKS, *WIKI], lr=3e-3),
}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "whole": [],
    "uniform 2-8-2": [{"kind": "drop", "keep": 8}],
    "noise 0.4 + int4": [{"kind": "noise", "scale": 0.4}, {"kind": "quantise", "bits": 4}],
}
TASKS = {  # kind, training data, test data, rows per step
    "text": ("text", "wikitext/train.txt", "wikitext/test.txt", 8),
    "owner": ("text", "wikitext/valid.txt", "wikitext/test.txt", 8),
    "sst2": ("sst2", "qa/sst2/train.tsv", "qa/sst2/dev.tsv", 16),
}


def task(kind: str) -> Task:
    """A kind of data, in windows of 256 tokens."""
    return load_task(kind, max_length=256)


def decoder(learning: Learning | None) -> dict[str, Any] | None:
    """The tensors of a decoder, learnt now."""
    if learning is None:
        return None
    options = TrainOptions(steps=learning.steps, batch_size=learning.batch_size, lr=learning.lr)
    sources = [(task(kind), INPUT / path) for kind, path in learning.sources]
    return learn_decoder(MODEL, sources, options=options, device=pick_device(), **learning.options)


def run(tensors: dict[str, Any] | None, recipe: str, name: str, seed: int) -> dict[str, float]:
    """Scores of the tuned emulator and the plug-in: nats a token, or a share of right answers."""
    kind, train, test, batch_size = TASKS[name]
    model = load_model(MODEL, dtype=torch.float32)
    processor = load_processor(MODEL, "text")
    if tensors is not None:
        attach_side(model, SideTensors("prompt_decoder", tensors))
    model.to(pick_device())
    steps = parse_recipe(RECIPES[recipe])
    offer, record = make_offer(
        model, adapter=ends(2, 2), recipe=steps, data=INPUT / "books.txt", task=task("text"),
        processor=processor, seed=seed,
    )  # fmt: skip
    method: Method = Prompt() if tensors is None else IntrinsicPrompt()
    options = TrainOptions(steps=120, batch_size=batch_size, seed=seed)
    data, test_data = INPUT / train, INPUT / test
    tuned = run_tune(offer, data, method, options=options, task=task(kind), device=pick_device())
    rows = rows_of(task(kind), test_data, processor, model, train=False)
    plugged = plug(model, tuned.delta, record, side={"prompt_decoder": tensors})
    pair = {"emulator_tuned": tuned.model, "plug_in": plugged.to(pick_device())}
    return {score: task(kind).evaluate(place, rows).value for score, place in pair.items()}


def main(out: Path, name: str, seeds: int) -> None:
    """Every recipe and task through one decoder."""
    tensors = decoder(DECODERS[name])
    for seed in range(seeds):
        for recipe in RECIPES:
            for private in TASKS:
                if private == "owner" and recipe != "whole":
                    continue
                row = {"decoder": name, "recipe": recipe, "task": private, "seed": seed}
                row |= run(tensors, recipe, private, seed)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
