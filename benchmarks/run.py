"""Run experiment files with many cells at once on the GPUs of one machine.

Cells go to the same cache that ``offsite lab`` uses, so afterwards the tables come from

    offsite lab benchmarks/experiments/NAME.toml --out build/lab/NAME

    python benchmarks/run.py build/lab 14 NAME [NAME ...]     # folder, processes, experiments

First the baselines, then one job per recipe and seed; LayerReplace passes start before the rest,
and the recipes that wait for them come last.
Jobs of the experiments named first start first; ``DEADLINE`` seconds (environment) stop the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

Job = tuple[str, int, int, str, str]  # experiment, plan, seed, recipe and delta ("" if shared)

LEARN = "learn"
SPLIT = 4  # with more deltas than this, each is a job of its own


def work(queue: Any, folder: Path, gpu: int, deadline: float) -> None:
    """Take jobs until there are none; a failing one is reported and does not stop the others."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    import torch

    from offsite.experiment import read_experiment
    from offsite.lab import Lab

    torch.set_num_threads(1)
    labs: dict[tuple[str, int], Lab] = {}
    while (job := queue.get()) is not None:
        name, index, seed, recipe, delta = job
        if time.time() > deadline:
            continue
        start = time.perf_counter()
        try:
            if (name, index) not in labs:
                plan = read_experiment(f"benchmarks/experiments/{name}.toml")[index]
                labs = {(name, index): Lab(plan, folder / name)}
            lab = labs[name, index]
            lab.plan = replace(lab.plan, seeds=(seed,))
            if not recipe:
                list(lab.run(["nothing but the zero-shot score"]))
                if lab.plan.baseline and lab.plan.data:
                    lab.full_tuned(seed)
            elif delta == LEARN:
                lab.learned(lab.recipes[recipe], seed)
            else:
                wait_for_learned(lab, recipe, seed, deadline)
                list(lab.run([recipe], [delta] if delta else None))
            print(f"{time.perf_counter() - start:6.1f} s  {job}", flush=True)
        except Exception:
            print(f"FAILED {job}\n{traceback.format_exc()}", flush=True)


def wait_for_learned(lab: Any, recipe: str, seed: int, deadline: float) -> None:
    """Wait until another process has finished the LayerReplace pass that a recipe needs."""
    from offsite.lab import NotCached

    lab.cached, missing = True, True
    while missing and time.time() < deadline:
        try:
            lab.learned(lab.recipes[recipe], seed)
            missing = False
        except NotCached:
            time.sleep(1)
    lab.cached = False
    if missing:
        raise TimeoutError("the LayerReplace pass was not finished in time")


def passes(plan: Any) -> list[str]:
    """One recipe for each different LayerReplace pass of a plan."""
    from offsite.compress import LayerReplace
    from offsite.plan import Recipe

    found = {}
    for name, value in plan.recipes.items():
        for step in Recipe.of(value, plan.adapter).steps:
            if isinstance(step, LayerReplace) and step.learned is None:
                found.setdefault(step.training, name)
    return list(found.values())


def main(folder: Path, processes: int, names: list[str]) -> None:
    """Run every job of the experiments, the shared ones first."""
    import torch

    from offsite.experiment import read_experiment

    deadline = time.time() + float(os.environ.get("DEADLINE", "1e9"))
    shared: list[Job] = []
    first: list[Job] = []
    single: list[Job] = []
    last: list[Job] = []
    for name in names:
        for index, plan in enumerate(read_experiment(f"benchmarks/experiments/{name}.toml")):
            learners = passes(plan)
            shared += [(name, index, seed, "", "") for seed in plan.seeds]
            first += [(name, index, s, recipe, LEARN) for recipe in learners for s in plan.seeds]
            for recipe, steps in plan.recipes.items():
                late = any(s["kind"] == "layer_replace" for s in steps_of(steps))
                (last if late else single).extend(
                    (name, index, seed, recipe, delta)
                    for delta in (plan.deltas if len(plan.deltas) > SPLIT else [""])
                    for seed in plan.seeds
                )
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue(), context.Queue()]
    gpus = max(1, torch.cuda.device_count())
    for queue, jobs in zip(queues, (shared, [*first, *single, *last]), strict=True):
        for job in [*jobs, *[None] * processes]:
            queue.put(job)
        pool = [
            context.Process(target=work, args=(queue, folder, i % gpus, deadline))
            for i in range(processes)
        ]
        for process in pool:
            process.start()
        for process in pool:
            process.join()
    print(f"{len(shared) + len(first) + len(single) + len(last)} jobs done", flush=True)


def steps_of(value: Any) -> list[Any]:
    """The steps of a recipe in either of a plan's forms."""
    return list(value["steps"] if isinstance(value, dict) else value)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
