"""Is it the loss that harmonizers learn by, that makes ScaleOT's plug-in fall behind its emulator?

The same blocks are replaced each time; only what the harmonizers were taught differs: the
language-model loss (``lm``, as in the paper), the hidden states of the blocks (``kd``), or nothing
(``none``: they add zero). Small enough for one core of a CPU: windows of 128 tokens.

    OMP_NUM_THREADS=1 python benchmarks/harmonizers.py lm       # about 13 minutes; see prepare.py
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from offsite.compress.scaleot.learned import Learned
from offsite.compress.scaleot.learning import learn
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.scaleot.training import Training
from offsite.compress.step import Context
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import load_model, load_processor
from offsite.model.replay import observe, relative_error
from offsite.model.split import Split
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.tasks import load_task
from offsite.tasks.data import rows_of
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune

INPUT = Path("build/bench")
# the scores that 1000 steps of LayerReplace gave (seed 0, 2026-11-22)
SCORES = (
    4.4, 0.7, -3.6, -3.7, 2.6, 2.3, -2.5, -1.8, -2.0, 2.7, -1.9, 1.3,
    1.5, 1.2, -1.3, -0.5, -2.2, 2.2, 2.5, -2.2, 2.9, -3.0, -3.0, 3.3,
)  # fmt: skip
TEACH = {
    "lm": Training(steps=250, lr=1e-3, batch_size=4),
    "kd": Training(steps=250, lr=1e-3, batch_size=4, lm_weight=0.0, kd_weight=1.0),
    "none": Training(steps=1, lr=1e-12, batch_size=4),
}


def main(kind: str) -> None:
    """Teach, cut, tune 120 steps of 6 windows, plug; print perplexities and the gap."""
    task = load_task("text", max_length=128)
    processor = load_processor(str(INPUT / "bookling-31m"), "text")
    loaded = load_model(str(INPUT / "bookling-31m"), task.auto_class, dtype=torch.float32)
    model = loaded.requires_grad_(False)

    def load(name: str, train: bool) -> Any:
        return rows_of(task, INPUT / name, processor, model, train=train)

    public, private = load("books.txt", True), load("wikitext/train.txt", True)
    whole = load("wikitext/test.txt", False)
    test = Subset(whole, range(0, len(whole), len(whole) // 80))

    def score(scored: Any) -> float:
        return float(task.evaluate(scored, test).value)

    total = len(get_blocks(model))
    found = learn(Context(model, Split((0,), total), task, public, 0), TEACH[kind])
    with tempfile.TemporaryDirectory() as folder:
        learned = f"{folder}/learned"
        Learned(SCORES, found.harmonizers, found.fingerprint).save(learned)
        offer, record = make_offer(
            model, adapter=(0, 1, total - 2, total - 1), data=public, task=task,
            recipe=[LayerReplace(alpha=0.55, learned=learned)], processor=processor, seed=0,
        )  # fmt: skip
    batch = task.collate([test[i] for i in range(8)])
    with torch.no_grad():
        target = observe(model, batch, [total - 3])[total - 3]
        last = len(get_blocks(offer.model)) - 3
        state = observe(offer.model, batch, [last])[last].output
    error = relative_error(state, target)
    options = TrainOptions(steps=120, seed=0, batch_size=6)
    tuned = run_tune(offer, private, options=options, task=task, device="cpu")
    after, plugged = score(tuned.model), score(plug(model, tuned.delta, record))
    print(
        f"{kind}: emulator {math.exp(score(offer.model)):.1f}, state error {error:.3f}, tuned "
        f"{math.exp(after):.2f}, plug-in {math.exp(plugged):.2f}, gap {after - plugged:+.3f}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
