"""Compute each stage of the lab; :mod:`offsite.lab.lab` caches the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from offsite.compress.recipe import Recipe
from offsite.compress.scaleot.learning import learn
from offsite.compress.scaleot.training import Training
from offsite.compress.step import Context
from offsite.errors import OffsiteError
from offsite.exchange.bounds import OutOfBounds
from offsite.exchange.delta import Delta
from offsite.exchange.record import Record
from offsite.lab.baselines import trainable, tune_all
from offsite.lab.cells import finite
from offsite.lab.emulators import Emulator
from offsite.lab.measure import measured, middle_bytes, middle_bytes_full, offer_bytes
from offsite.lab.plan import Tuning
from offsite.lab.setting import Setting
from offsite.model.blocks import get_blocks
from offsite.model.split import Split
from offsite.owner.decode import Decode
from offsite.owner.mixture import Mixture
from offsite.owner.offering import make_offer
from offsite.owner.plugging import merge_delta
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune

Passes = Mapping[Training, Mapping[str, Any]]  # outcomes of LayerReplace passes, with their folder


def make_emulator(setting: Setting, recipe: Recipe, seed: int, passes: Passes) -> Emulator:
    """Compress the middle of the full model as a recipe says; the seconds are with its passes."""
    scores = passes[recipe.trainings[0]]["scores"] if passes else None  # by the first pass
    adapter = recipe.adapter(len(get_blocks(setting.model)), scores).adapter
    steps = [
        own.given(passes[own.training]["folder"]) if (own := step.needs.own_pass) else step
        for step in recipe.steps
    ]
    with measured(setting.device) as cost:
        offer, record = make_offer(
            setting.model, adapter=adapter, recipe=steps, data=setting.public_rows(),
            task=setting.public, processor=setting.processor, seed=seed, reach=setting.plan.reach,
            name=Path(setting.plan.model).name,
        )  # fmt: skip
    cost["seconds"] += sum(float(one["seconds"]) for one in passes.values())
    return Emulator(offer, record, cost)


def score_offer(setting: Setting, made: Emulator, importance: Any) -> dict[str, Any]:
    """The emulator untuned, and what the offer weighs and cost."""
    entry = made.record.offers[0]
    whole = middle_bytes_full(setting.model, entry)
    return {
        **setting.score(made.offer.model), **made.cost, "verbatim": made.record.verbatim,
        "importance": importance,
        "bytes_offer": offer_bytes(made.offer), "bytes_model": made.record.model_bytes,
        "positions": entry.middle, "adapter": entry.adapter, "blocks": entry.total,
        "bytes_middle": middle_bytes(made.offer) / max(1, whole),
    }  # fmt: skip


def tune_and_plug(
    setting: Setting, made: Emulator, tuning: Tuning, options: TrainOptions, folder: Path | None
) -> dict[str, Any]:
    """Tune one delta through the emulator, plug it, and score both.

    Args:
        folder: where the delta is written and read back, as between two parties; None for nowhere.
    """
    rows = setting.private_rows(made.offer.model)
    with measured(setting.device) as cost:
        tuned = run_tune(
            made.offer, rows, tuning.method, options=options, task=setting.task,
            reach=tuning.reach, device=setting.device,
        )  # fmt: skip
    delta = tuned.delta
    if folder is not None and finite(tuned.model):
        delta.save(folder)
        delta = Delta.load(folder, require_signature=False)
    return {
        "emulator_tuned": setting.score(tuned.model),
        "plug_in": plugged(setting, delta, made.record),
        "bytes_delta": tuned.delta.bytes, "trainable": tuned.trainable,
        "seconds_per_step": tuned.history.seconds / max(tuned.history.steps, 1),
        "history": list(tuned.history.points), **cost,
    }  # fmt: skip


def decode_and_score(setting: Setting, made: Emulator, delta: Delta, how: Decode) -> dict[str, Any]:
    """The plugged model once the owner has decoded a delta into it.

    ``at_logits`` is the score of the teacher itself, for tasks that are scored by their loss.
    """
    try:
        plugged = merge_delta(setting.model, delta, made.record)
    except OutOfBounds:
        return {"value": None}
    mixture = Mixture.of(setting.model, plugged, made.offer, delta, how.strength)
    at_logits = None
    if setting.task.metric == "loss":
        at_logits = setting.score(mixture)["value"]
    with measured(setting.device) as cost:
        data = how.data(setting.task.name)
        student = how(mixture, setting.processor, data, setting.device)
    return {**setting.score(student), "at_logits": at_logits, **cost}


def plugged(setting: Setting, delta: Delta, record: Record) -> dict[str, Any]:
    """The score of the full model with a delta; unknown where the offer's bounds refuse it."""
    try:
        return setting.score(merge_delta(setting.model, delta, record))
    except OutOfBounds:
        return {"value": None}


def tune_every_weight(
    setting: Setting, model: Any, options: TrainOptions, text: str, public_tokens: int = 0
) -> dict[str, Any]:
    """Tune every weight of a copy of a model on the private data, and score it.

    Args:
        public_tokens: how many tokens of the owner's own data it is tuned on first, in full rows.
    """
    copied = trainable(model)
    rows = setting.private_rows(copied)
    with measured(setting.device) as cost:
        if public_tokens:
            steps = max(1, public_tokens // (options.batch_size * setting.plan.max_length))
            first = replace(options, steps=steps)
            tune_all(copied, setting.public_rows(), setting.public, first, setting.device, text)
        history = tune_all(copied, rows, setting.task, options, setting.device, text)
    return {**setting.score(copied), "history": list(history.points), **cost}


def learn_pass(setting: Setting, training: Training, seed: int, folder: Path) -> dict[str, Any]:
    """One LayerReplace pass over all blocks but the first; its harmonizers go into ``folder``.

    Raises:
        OffsiteError: it diverged.
    """
    with measured(setting.device) as cost:
        split = Split((0,), len(get_blocks(setting.model)))
        frozen = setting.model.requires_grad_(False)
        context = Context(frozen, split, setting.public, setting.public_rows(), seed)
        found = learn(context, training)
    if not finite(found.harmonizers):
        raise OffsiteError("LayerReplace diverged; give its step a lower lr or eta.")
    if not folder.exists():
        found.save(folder)
    return {"scores": found.scores, **cost}
