"""How long scoring takes beside lm-eval: the same questions, model and batch, in pairs.

Each pair runs ``offsite``'s own likelihoods and lm-eval's (``score --harness``) one after the other
in one process, from text to accuracy, so that what else the machine does meets both. Seconds are of
the clock, and in brackets those that the process computed, which a busy machine changes less.

    python -m benchmarks.scoring MODEL --task openbookqa --data test.jsonl --limit 100 --pairs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.pairs import Times, timed, times_as_fast
from offsite.model.checkpoint import load_model
from offsite.scores.harness import harness_scores
from offsite.tasks import load_task
from offsite.tasks.data import TaskData, read_data, rows_of
from offsite.training.devices import pick_device


def shown(times: Times) -> str:
    """The two times of a scoring."""
    return f"{times[0]:.1f} ({times[1]:.1f})"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", default="openbookqa")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    a = parser.parse_args()
    device, task = pick_device(), load_task(a.task)
    model = load_model(a.model, dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.jsonl"
        part.write_text("\n".join(a.data.read_text().splitlines()[: a.limit]) + "\n")

        def data() -> TaskData:
            found = read_data(task, str(part))
            assert found is not None
            return found

        def ours() -> float:
            rows = rows_of(task, data(), tokenizer, model, train=False)
            return float(task.evaluate(model, rows, batch_size=a.batch).value)

        def theirs() -> float:
            given = {a.task: data()}
            found = harness_scores(model, tokenizer, given, batch_size=a.batch)[a.task]
            return float(found.value)

        pairs = [(timed(ours), timed(theirs)) for _ in range(a.pairs + 1)][1:]  # the first warms up
    own, harness = [times for (times, _), _ in pairs], [times for _, (times, _) in pairs]
    ratios = times_as_fast(own, harness)
    found = {
        "questions": a.limit,
        "batch": a.batch,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "offsite_seconds": [shown(times) for times in own],
        "lm_eval_seconds": [shown(times) for times in harness],
        "offsite_value": pairs[0][0][1],
        "lm_eval_value": pairs[0][1][1],
        "times_as_fast": [round(statistics.median(found), 2) for found in ratios],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
