"""The training path: how long it warms up, which weights early stopping keeps, where logs stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offsite.compress.distill import Distill
from offsite.compress.scaleot.step import LayerReplace
from offsite.errors import OffsiteError
from offsite.training.options import TrainOptions
from offsite.training.resume import finish_work
from offsite.training.train import train

CPU = torch.device("cpu")


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x


def fit(options: TrainOptions, rows: int = 9, **more: Any) -> tuple[Line, Any]:
    model = Line()
    history = train(
        model,
        [{"x": torch.tensor(1.0)}] * rows,  # type: ignore[arg-type]
        loss=lambda m, batch, items: (m(batch["x"]) ** 2).mean(),
        collate=lambda given: {"x": torch.stack([row["x"] for row in given])},
        options=options,
        device=CPU,
        **more,
    )
    return model, history


@pytest.mark.parametrize(("rows", "accumulate"), [(9, 1), (3, 4), (33, 2)])
def test_warm_up_is_the_share_asked_for(
    rows: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offsite.training import train as module

    made: list[Any] = []
    original = module._arguments

    def remember(*arguments: Any) -> Any:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(module, "_arguments", remember)
    options = TrainOptions(epochs=50, batch_size=8, accumulate=accumulate, warmup=0.2)
    _, history = fit(options, rows)
    assert made[0].warmup_steps == round(0.2 * history.steps)


@pytest.mark.parametrize("kept", [False, True])
def test_early_stopping_gives_the_best_weights_back(kept: bool, tmp_path: Path) -> None:
    options = TrainOptions(
        steps=60, batch_size=9, lr=0.9, schedule="constant", warmup=0, patience=2, eval_every=1
    )
    work = tmp_path / "work" if kept else None
    model, history = fit(options, eval_data=[{"x": torch.tensor(1.0)}], work=work)
    losses = [point["eval_loss"] for point in history.points if "eval_loss" in point]
    assert history.steps < 60 and min(losses) < losses[-1]
    assert model.slope.item() ** 2 == pytest.approx(min(losses), rel=1e-5)


def test_logs_for_trackers_outlive_the_work_folder(tmp_path: Path) -> None:
    (tmp_path / "out.work" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "out.work" / "runs" / "one" / "events").write_text("loss")
    finish_work(tmp_path / "out.work")
    assert [path.name for path in tmp_path.iterdir()] == ["out.runs"]
    assert (tmp_path / "out.runs" / "one" / "events").read_text() == "loss"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Distill(steps=0),
        lambda: Distill(lr=-1.0),
        lambda: Distill(batch_size=0),
        lambda: Distill(lm_weight=0, kd_weight=0),
        lambda: LayerReplace(alpha=0.5, batch_size=0),
        lambda: LayerReplace(alpha=0.5, lr=-1.0),
        lambda: LayerReplace(alpha=0.5, steps=0),
        lambda: LayerReplace(alpha=0.5, lm_weight=0, kd_weight=0),
        lambda: LayerReplace(alpha=0.5, eta=float("nan")),
    ],
)
def test_steps_that_cannot_run_are_refused_when_they_are_made(make: Any) -> None:
    with pytest.raises(OffsiteError):
        make()


ELSEWHERE = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_SIZE": "2",
}


def test_what_other_launchers_left_in_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Schedulers, MPI and accelerate's own configuration set these for other runs."""
    options = TrainOptions(steps=3, batch_size=2, lr=0.1)
    plain, history = fit(options)
    for key, value in ELSEWHERE.items():
        monkeypatch.setenv(key, value)
    again, repeated = fit(options)
    assert torch.equal(plain.slope, again.slope)
    assert history.points == repeated.points and history.steps == repeated.steps
    epoch = fit(TrainOptions(epochs=1, batch_size=3))[1]
    assert epoch.steps == 3  # nine rows, all of them this process's
    assert {key: os.environ[key] for key in ELSEWHERE} == ELSEWHERE
