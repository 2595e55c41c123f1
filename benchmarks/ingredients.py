"""Which ingredient moves both figures of the frontier, and which trades one for the other.

Beside the emulator itself, two steps of the owner are tried that no recipe has:

- *prime*: before the offer is cut, the adapter is tuned through the emulator on public data, so
  that the tuner's change holds less of what only repairs the emulator. What is plugged is the
  change: ``theta + (tuned - primed)``.
- *heal*: after plugging, the adapter blocks are trained for a moment on public data, by the
  language-model loss (``lm``) or towards the untouched model's predictions (``kl``).

    python benchmarks/ingredients.py OUT.jsonl 8          # file, processes; see prepare.py
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

INPUT = Path("build/bench")
ADAPTER = (0, 1, 22, 23)
INT4 = {"kind": "quantise", "bits": 4}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "noise 0.4 + int4": [{"kind": "noise", "scale": 0.4}, INT4],
    "noise 0.6 + int4": [{"kind": "noise", "scale": 0.6}, INT4],
    "noise 0.8 + int4": [{"kind": "noise", "scale": 0.8}, INT4],
    "uniform 8": [{"kind": "drop", "keep": 8}],
}
NONE, GENTLE = (0, 0.0), (300, 3e-4)
HEALS = (("lm", 100, 1e-4), ("kl", 100, 3e-4))
DELTAS = ("full", "lora:rank=8")

Job = tuple[str, int, tuple[int, float], bool]  # recipe, seed, steps and rate of priming, heal?


def jobs() -> list[Job]:
    """Both steps for every recipe; more seeds and further ways to prime for two of them."""
    found: list[Job] = [(recipe, 0, prime, True) for recipe in RECIPES for prime in (NONE, GENTLE)]
    for recipe in ("noise 0.6 + int4", "noise 0.8 + int4"):
        found += [(recipe, seed, prime, True) for seed in (1, 2) for prime in (NONE, GENTLE)]
        found += [(recipe, 0, (100, 3e-4), False), (recipe, 0, (300, 1e-4), False)]
    return found


def work(queue: Any, out: str, gpu: int) -> None:
    """Take jobs until there are none, and append one line per delta to ``out``."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    import torch

    torch.set_num_threads(1)
    bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    while (job := queue.get()) is not None:
        try:
            for row in bench.run(*job):
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        except Exception:
            print(f"FAILED {job}\n{traceback.format_exc()}", flush=True)


class Bench:
    """The model and the data, on one device."""

    def __init__(self, device: Any) -> None:
        import torch

        from offsite.model.checkpoint import load_model, load_processor
        from offsite.tasks import load_task
        from offsite.tasks.data import rows_of

        self.device, self.task = device, load_task("text", max_length=256)
        self.processor = load_processor(str(INPUT / "bookling-31m"), "text")
        model = load_model(str(INPUT / "bookling-31m"), self.task.auto_class, dtype=torch.float32)
        self.model = model.to(device)

        def load(name: str, train: bool) -> Any:
            return rows_of(self.task, INPUT / name, self.processor, model, train=train)

        self.public, self.private = load("books.txt", True), load("wikitext/train.txt", True)
        self.test = load("wikitext/test.txt", False)

    def score(self, model: Any) -> float:
        """Mean loss on the test text, in nats."""
        return float(self.task.evaluate(model.to(self.device), self.test).value)

    def run(self, recipe: str, seed: int, prime: tuple[int, float], heal: bool) -> Any:
        """Make the offer, prime it, tune each delta, plug the change, heal."""
        from offsite.compress import parse_recipe
        from offsite.deltas import method_json, parse_method
        from offsite.owner.offering import make_offer
        from offsite.owner.plugging import plug
        from offsite.training.options import TrainOptions
        from offsite.tuner.tuning import run_tune

        offer, record = make_offer(
            self.model, adapter=ADAPTER, recipe=parse_recipe(RECIPES[recipe]), data=self.public,
            task=self.task, processor=self.processor, seed=seed,
        )  # fmt: skip
        primed = offer
        if prime[0]:
            options = TrainOptions(steps=prime[0], lr=prime[1], seed=seed + 100)
            done = run_tune(offer, self.public, options=options, task=self.task, device=self.device)
            primed = replace(offer, model=done.model.requires_grad_(False))
        own = {name: p.detach().cpu() for name, p in offer.model.named_parameters()}
        start = {name: p.detach().cpu() for name, p in primed.model.named_parameters()}
        emulator = self.score(primed.model)
        for delta in DELTAS:
            tuned = run_tune(
                primed, self.private, parse_method(method_json(delta)), task=self.task,
                options=TrainOptions(steps=120, seed=seed), device=self.device,
            )  # fmt: skip
            assert tuned.delta.tensors is not None
            change = {
                name: own[name] + (tensor - start[name]) if name in start else tensor
                for name, tensor in tuned.delta.tensors.items()
            }
            plugged = plug(self.model, replace(tuned.delta, tensors=change), record)
            row = {
                "recipe": recipe, "seed": seed, "delta": delta, "prime": prime,
                "emulator": emulator, "emulator_tuned": self.score(tuned.model),
                "plug_in": self.score(plugged),
            }  # fmt: skip
            for loss, steps, lr in HEALS if heal else ():
                healed = self.heal(plugged, loss, TrainOptions(steps=steps, lr=lr, seed=seed + 200))
                row[f"heal {loss}"] = self.score(healed)
            yield row

    def heal(self, plugged: Any, loss: str, options: Any) -> Any:
        """The plugged model after some steps on public data, its adapter blocks alone trained."""
        from offsite.model.blocks import get_blocks
        from offsite.training.train import train

        model = copy.deepcopy(plugged).requires_grad_(False)
        for position in ADAPTER:
            get_blocks(model)[position].requires_grad_(True)
        kind = self.task.loss if loss == "lm" else self.divergence
        train(
            model, self.public, loss=kind, collate=self.task.collate, options=options,
            device=self.device,
        )  # fmt: skip
        return model

    def divergence(self, model: Any, batch: Any, items: Any = None) -> Any:
        """Kullback-Leibler divergence from the untouched model's predictions, per token."""
        import torch

        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            target = self.model(**inputs).logits.log_softmax(-1)
        found = model(**inputs).logits.log_softmax(-1)
        return (target.exp() * (target - found)).sum(-1).mean()


def main(out: str, processes: int) -> None:
    """Run every job, so many at once."""
    import torch

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for job in [*jobs(), *[None] * processes]:
        queue.put(job)
    gpus = max(1, torch.cuda.device_count())
    pool = [context.Process(target=work, args=(queue, out, i % gpus)) for i in range(processes)]
    for process in pool:
        process.start()
    for process in pool:
        process.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
