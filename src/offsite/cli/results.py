"""Results in two forms: what ``--json`` prints, and lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offsite.cli.output import Lines, describe, headed
from offsite.deltas import method_text
from offsite.scores.scores import DERIVED, TITLES, Scores
from offsite.scores.settings import private_settings, settings_of
from offsite.tasks.data import TaskData
from offsite.tasks.task import Task
from offsite.tuner.tuning import Tuned


def tuned_json(
    tuned: Tuned, out: Path, task: Task, test: TaskData | None, details: bool
) -> dict[str, Any]:
    """What became of a tuning run.

    Args:
        test: the data that it was scored on, if it was.
        details: tell what describes that data too.
    """
    manifest, history = tuned.delta.manifest, tuned.history
    dp = {} if manifest.dp is None else {"dp": manifest.dp.model_dump()}
    result = {
        "delta": str(out),
        "id": manifest.id,
        "offer": manifest.parent,
        "method": manifest.method,
        "trainable": tuned.trainable,
        "precision": tuned.precision,
        "tensors": len(manifest.tensors),
        "bytes": tuned.delta.bytes,
        "steps": history.steps,
        "seconds": history.seconds,
        "loss": history.loss,
        "history": history.points,
        **dp,
    }
    if tuned.evaluation is None or test is None:
        return result
    return {
        **result,
        "scores": {"emulator_tuned": tuned.evaluation.value},
        "metric": tuned.evaluation.metric,
        "higher_is_better": tuned.evaluation.higher_is_better,
        **settings_of(task),
        **(private_settings(test, tuned.evaluation.count) if details else {}),
    }


def tuned_lines(tuned: Tuned, out: Path) -> Lines:
    """The same for people."""
    manifest, history = tuned.delta.manifest, tuned.history
    lines: Lines = [
        headed(out, f"delta {manifest.id[:8]} for the offer {manifest.parent[:8]}"),
        f"  method       {method_text(manifest.method)}",
        f"  trained      {tuned.trainable:,} parameters, {history.steps} steps, "
        f"{history.seconds:.0f} s, mean loss {history.loss:.4f}",
        f"  delta        {tuned.delta.bytes:,} bytes in {len(manifest.tensors)} tensors",
    ]
    if manifest.dp is not None:
        lines.append(
            f"  privacy      epsilon {manifest.dp.epsilon:.3g}, delta {manifest.dp.delta:g} for "
            f"each example (noise {manifest.dp.noise_multiplier:.2f} from {manifest.dp.noise})"
        )
    if tuned.evaluation is not None:
        lines.append(f"  score        {describe(tuned.evaluation)} (the tuned emulator)")
    return lines


def score_lines(scored: Mapping[str, tuple[str, Any]], total: Scores) -> list[str]:
    """A line for each path that was scored, then what others scored, then what follows from both.

    Args:
        scored: which score to its path and evaluation.
        total: all scores together.
    """
    story = total.to_json()
    lines = [
        f"{TITLES[key]:20} {describe(result)}   {path}" for key, (path, result) in scored.items()
    ]
    lines += [f"{TITLES[k]:20} {v:.4f}" for k, v in story["scores"].items() if k not in scored]
    return lines + [f"{key:20} {story[key]:.4f}" for key in DERIVED if key in story]
