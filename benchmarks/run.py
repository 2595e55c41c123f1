"""Run experiment files with many cells at once on the GPUs of one machine.

Cells go to the same cache that ``offsite lab`` uses, so afterwards the tables come from

    offsite lab benchmarks/experiments/NAME.toml --out build/lab/NAME

    python benchmarks/run.py build/lab 14 NAME [NAME ...]     # folder, processes, experiments

First the baselines, then the rows that the cache does not hold, in the order the experiments are
named. LayerReplace passes start before all rows; within an experiment the rows that wait for them
come last. ``DEADLINE`` seconds (environment) stop what has not begun. About nine processes on a GPU
are best: with fifteen a row took three times as long.
"""

from __future__ import annotations

import itertools
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

    from offsite.lab.experiment import read_experiment
    from offsite.lab.lab import Lab

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
                lab.zero_shot()
                if lab.plan.baseline and lab.plan.data:
                    lab.full_tuned(seed)
            elif delta == LEARN:
                for need in lab.recipes[recipe].trainings:
                    lab.learned(need, seed)
            else:
                wait_for_learned(lab, recipe, seed, deadline)
                list(lab.run([recipe], [delta] if delta else None))
            print(f"{time.perf_counter() - start:6.1f} s  {job}", flush=True)
        except Exception:
            print(f"FAILED {job}\n{traceback.format_exc()}", flush=True)


def wait_for_learned(lab: Any, recipe: str, seed: int, deadline: float) -> None:
    """Wait until another process has finished the LayerReplace pass that a recipe needs."""
    from offsite.lab.cells import NotCached

    lab.cached, missing = True, True
    while missing and time.time() < deadline:
        try:
            for need in lab.recipes[recipe].trainings:
                lab.learned(need, seed)
            missing = False
        except NotCached:
            time.sleep(1)
    lab.cached = False
    if missing:
        raise TimeoutError("the LayerReplace pass was not finished in time")


def missing(plan: Any, folder: Path) -> list[tuple[str, str, int]]:
    """Recipe, delta and seed of every row of a plan that the cache does not hold."""
    from offsite.lab.lab import Lab

    rows = Lab(plan, folder, "cpu", cached=True).run()
    done = {(row.recipe, row.delta, row.seed) for row in rows}
    grid = itertools.product(plan.recipes, plan.deltas, plan.seeds)
    return [cell for cell in grid if cell not in done]


def todo(name: str, folder: Path) -> tuple[list[Job], list[Job], list[Job]]:
    """The jobs of an experiment: baselines, LayerReplace passes, and rows, waiting ones last."""
    from offsite.lab.experiment import read_experiment

    shared: list[Job] = []
    first: dict[Any, Job] = {}
    rows: list[Job] = []
    late: list[Job] = []
    for index, plan in enumerate(read_experiment(f"benchmarks/experiments/{name}.toml")):
        split = len(plan.deltas) > SPLIT
        for recipe, delta, seed in missing(plan, folder):
            shared.append((name, index, seed, "", ""))
            needs = plan.recipes[recipe].trainings
            if needs:
                first[index, needs, seed] = (name, index, seed, recipe, LEARN)
            (late if needs else rows).append((name, index, seed, recipe, delta if split else ""))
    return list(dict.fromkeys(shared)), list(first.values()), list(dict.fromkeys([*rows, *late]))


def main(folder: Path, processes: int, names: list[str]) -> None:
    """Run every job of the experiments, the shared ones first."""
    import torch

    deadline = time.time() + float(os.environ.get("DEADLINE", "1e9"))
    found = [todo(name, folder / name) for name in names]
    shared, first, rows = (
        [job for part in kind for job in part] for kind in zip(*found, strict=True)
    )
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue(), context.Queue()]
    gpus = max(1, torch.cuda.device_count())
    for queue, jobs in zip(queues, (shared, [*first, *rows]), strict=True):
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
    print(f"{len(shared) + len(first) + len(rows)} jobs done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
