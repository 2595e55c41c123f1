"""Evaluation during training: the curve is there, and early stopping goes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offsite.compress.drop import Drop
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import language_model


def test_tuning_records_the_evaluation_loss_and_stops_early(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    task = CausalText(32)
    offer, _ = make_offer(language_model("llama"), recipe=[Drop(keep=1)], processor=tokenizer)
    options = TrainOptions(steps=10, batch_size=2, lr=1e-2, eval_every=5)
    tuned = run_tune(offer, text_file, options=options, eval_data=text_file, task=task)
    losses = [point["eval_loss"] for point in tuned.history.points if "eval_loss" in point]
    assert len(losses) == 2 and tuned.evaluation is not None
    assert abs(losses[-1] - tuned.evaluation.value) < 0.02
    other = tmp_path / "other.txt"
    other.write_text("Zq xj vwk! " * 60)
    early = TrainOptions(steps=200, batch_size=2, lr=3e-2, eval_every=5, patience=2)
    stopped = run_tune(
        offer, text_file, options=early, eval_data=other, task=task, work=tmp_path / "work"
    )
    assert stopped.history.steps < 200
