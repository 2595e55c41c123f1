"""Compute many cells at the same time: one process for each, spread over the GPUs.

A process takes one cell after the other, and writes its outcome into the folder that all share. So
a kill loses only the cells that are running. A cell that fails does not stop those that can do
without it. One that runs out of memory is computed again when fewer run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from offsite.errors import OffsiteError, is_out_of_memory
from offsite.lab.cells import Cell, CellGraph
from offsite.lab.checking import PlanData
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.training.devices import pick_device
from offsite.training.memory import trim_memory
from offsite.training.progress import counter, say

Job = tuple[int, Cell]  # which of the plans, and what of it
VISIBLE = "CUDA_VISIBLE_DEVICES"


def compute_all(
    plans: Sequence[Plan],
    checked: Sequence[PlanData],
    out: Path,
    device: str | None,
    processes: int,
) -> None:
    """Compute every missing cell of some plans, so many at a time, with one bar for all.

    Raises:
        OffsiteError: cells that failed, once all the others are done; the message has the first.
    """
    graph: dict[Job, tuple[Job, ...]] = {}
    first: dict[Path, Job] = {}  # several plans may share a cell: it is computed once
    for index, (plan, data) in enumerate(zip(plans, checked, strict=True)):
        lab = Lab(plan, out, device, data=data)
        missing: CellGraph = lab.missing()
        own = {cell: first.setdefault(lab.path(cell), (index, cell)) for cell in missing}
        graph |= {
            (index, cell): tuple(own[need] for need in needs if need in missing)
            for cell, needs in missing.items()
            if own[cell] == (index, cell)
        }
    if not graph:
        return
    processes = min(processes, len(graph))
    failed: dict[Job, str] = {}
    with counter(len(graph), "cells") as bar, staff(plans, out, device, processes) as workers:
        for job, reason in dispatch(graph, workers):
            bar.update()
            if reason is None:
                say(f"computed  {plans[job[0]].task}  {job[1]}")
            else:
                failed[job] = reason
                say(f"failed  {plans[job[0]].task}  {job[1]}: {reason}")
    if failed:
        raise OffsiteError(
            f"{len(failed)} of {len(graph)} cells could not be computed; the first said: "
            f"{next(iter(failed.values()))} The others are kept: run the same command again to try "
            "what is missing, or with --cached to see what there is."
        )


@dataclass
class Worker:
    """A process that computes cells; ``job`` is what it is at work on."""

    process: Any
    connection: Connection
    log: Path
    job: Job | None = None
    plan: int = field(default=-1)  # whose model it holds


@dataclass(frozen=True)
class Failure:
    """Why a cell could not be computed; ``memory`` if it might be with fewer jobs."""

    reason: str
    memory: bool = False


def dispatch(
    graph: dict[Job, tuple[Job, ...]], workers: list[Worker]
) -> Iterator[tuple[Job, str | None]]:
    """Hand out jobs, each after those it needs; yields every job with the reason if it failed.

    A free process gets the first job that is ready, if possible one of the plan whose model it
    holds. What a failed job was needed for fails with it. After a job that ran out of memory
    while others run, one job fewer runs at a time, and it is tried again.
    """
    waiting, at_once = dict(graph), len(workers)
    over: set[Job] = set()
    failed: set[Job] = set()
    while waiting or any(worker.job for worker in workers):
        while lost := [job for job, needs in waiting.items() if failed & set(needs)]:
            for job in lost:
                del waiting[job]
                failed.add(job)
                yield job, "What it needs could not be computed."
        hand_out(waiting, over, workers, at_once)
        busy = {worker.connection: worker for worker in workers if worker.job}
        for connection in wait(list(busy)) if busy else ():
            worker = busy[connection]  # type: ignore[index]
            finished, failure = worker.job, answer(worker)
            assert finished is not None
            worker.job = None
            if not worker.process.is_alive():
                workers.remove(worker)
            others = sum(1 for one in workers if one.job)
            if failure is not None and failure.memory and others:
                at_once = min(at_once, others)
                waiting[finished] = graph[finished]
                say(f"Out of memory: from here on {at_once} cells are computed at a time.")
                continue
            (over if failure is None else failed).add(finished)
            yield finished, None if failure is None else failure.reason
        if waiting and not workers:
            raise OffsiteError(
                "Every process of the lab has ended; run the same command again with fewer --jobs."
            )


def hand_out(
    waiting: dict[Job, tuple[Job, ...]], over: Collection[Job], workers: list[Worker], at_once: int
) -> None:
    """Give free processes jobs whose needs are over, until so many are at work."""
    free = at_once - sum(1 for worker in workers if worker.job)
    for worker in [worker for worker in workers if worker.job is None][: max(0, free)]:
        ready = [job for job, needs in waiting.items() if all(need in over for need in needs)]
        if ready:
            worker.job = next((job for job in ready if job[0] == worker.plan), ready[0])
            worker.plan = worker.job[0]
            del waiting[worker.job]
            with suppress(OSError):  # it has ended, as reading will find
                worker.connection.send(worker.job)


def answer(worker: Worker) -> Failure | None:
    """What a process says of its job: None, or why it failed."""
    try:
        failure: Failure | None = worker.connection.recv()
        return failure
    except (EOFError, OSError):
        worker.process.join()
        status = worker.process.exitcode
        return Failure(
            f"Its process ended with status {status}, perhaps for want of memory; use fewer "
            f"--jobs. '{worker.log}' may say more.",
            memory=status == -signal.SIGKILL,  # as Linux does to one that takes too much
        )


@contextmanager
def staff(
    plans: Sequence[Plan], out: Path, device: str | None, count: int
) -> Iterator[list[Worker]]:
    """So many processes, which end with the block or when this process is gone."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // count)
    chosen, cards = pick_device(device), gpus(device)
    workers: list[Worker] = []
    try:
        for number in range(count):
            mine, theirs = context.Pipe()
            log = out / "logs" / f"{number}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            given = (theirs, list(plans), out, chosen.type, threads, log)
            process = context.Process(target=work, args=given, daemon=True)
            with visible(cards[number % len(cards)] if cards else None):
                process.start()
            theirs.close()  # so that its end is seen here
            workers.append(Worker(process, mine, log))
        yield workers
    finally:
        for worker in workers:
            worker.connection.close()
            if worker.job:
                worker.process.terminate()
        for worker in workers:  # one without a job ends by itself, and cleans up behind it
            worker.process.join(10)
            worker.process.terminate()


def gpus(device: str | None) -> list[str]:
    """The GPUs to spread processes over, by the names that CUDA_VISIBLE_DEVICES takes."""
    chosen = pick_device(device)
    if chosen.type != "cuda":
        return []
    names = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    names = names or [str(index) for index in range(torch.cuda.device_count())]
    return names if chosen.index is None else [names[chosen.index]]


@contextmanager
def visible(card: str | None) -> Iterator[None]:
    """Let a process that starts in the block see one GPU only."""
    before = os.environ.get(VISIBLE)
    try:
        if card is not None:
            os.environ[VISIBLE] = card
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        elif card is not None:
            del os.environ[VISIBLE]


def work(
    connection: Connection, plans: list[Plan], out: Path, device: str, threads: int, log: Path
) -> None:
    """Compute the cells that the other end asks for, until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that waits for this
    with log.open("w") as file:  # no terminal, so that no bar is drawn
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    current, lab = -1, None
    with suppress(EOFError, BrokenPipeError):
        while True:
            index, cell = connection.recv()
            failure = None
            try:
                if current != index or lab is None:
                    lab = None  # its memory is free before the next takes some
                    current, lab = index, Lab(plans[index], out, device)
                lab.do(cell)
            except Exception as error:
                failure = Failure(sentence(error, log), is_out_of_memory(error))
            if failure is not None and failure.memory:
                lab = None
                trim_memory()  # for the other jobs
            connection.send(failure)


def sentence(error: Exception, log: Path) -> str:
    """Why a cell failed, without the text of an error that may quote data."""
    if isinstance(error, OffsiteError):
        return str(error)
    if is_out_of_memory(error):
        return "It needs more memory than there is; use a smaller batch size or --max-length."
    print(*traceback.format_tb(error.__traceback__), type(error).__name__, file=sys.stderr)
    sys.stderr.flush()
    return f"It stopped with {type(error).__name__}; '{log}' says where."
