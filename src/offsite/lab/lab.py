"""The researcher's side: both roles and the full fine-tuning baseline in one run.

A plan is a grid of recipes, deltas and seeds on one model and one task. Every cell is cached under
the hash of everything it depends on, so a plan can be interrupted, extended and run again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from offsite.codec import to_json
from offsite.compress.recipe import Recipe
from offsite.compress.scaleot.learning import Training, learn
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.step import Context
from offsite.errors import OffsiteError
from offsite.exchange.contract import OutOfBounds
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.files import read_json, write_file
from offsite.lab.baselines import best_rate, trainable, tune_all
from offsite.lab.cells import NotCached, finite, identity, known, make_row, method_key, options_key
from offsite.lab.checking import PlanData, check_plan
from offsite.lab.environment import environment
from offsite.lab.measure import measured, middle_bytes, middle_bytes_full, offer_bytes
from offsite.lab.plan import Plan, Row, Tuning, slug
from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import parse_dtype, pick_device
from offsite.model.heads import give_head, labels_of, same_classes
from offsite.model.split import Split
from offsite.owner.offering import make_offer
from offsite.owner.plugging import merge_delta
from offsite.tasks.data import TaskData
from offsite.tasks.task import Evaluation
from offsite.training.identity import Identity
from offsite.training.options import TrainOptions
from offsite.training.precision import fitted
from offsite.tuner.tuning import run_tune


class Lab:
    """Runs plans; keeps every finished cell under ``folder``.

    With ``exchange`` the two roles meet only through folders, as in a real deployment: each offer,
    record and delta is written below it and read back. With ``cached`` nothing is computed and rows
    that lack a cell are left out.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        device: str | None = None,
        *,
        exchange: Path | None = None,
        cached: bool = False,
        data: PlanData | None = None,
    ) -> None:
        self.plan, self.folder, self.exchange, self.cached = plan, folder, exchange, cached
        self.task, self.public = plan.tasks()
        self.data = data or check_plan(plan)
        self.recipes = plan.recipes
        self.tunings = {name: Tuning.of(delta) for name, delta in plan.deltas.items()}
        self.device = pick_device(device)
        self.options = fitted(plan.options, self.device)
        self.processor = self.data.checkpoint.processor
        self.model = self.data.checkpoint.load(dtype=parse_dtype(plan.dtype))
        for recipe in self.recipes.values():
            recipe.check(len(get_blocks(self.model)))
        plan.prepare(self.model).to(self.device)
        self.identity = identity(plan, self.model, self.processor)
        self.rows: dict[tuple[Any, ...], Any] = {}
        self.environments: list[dict[str, str]] = []  # what the cells used were computed on

    def run(
        self, recipes: Collection[str] | None = None, deltas: Collection[str] | None = None
    ) -> Iterator[Row]:
        """Every row of the plan (or of some recipes and deltas), cached or computed now."""
        plan, metric = self.plan, (self.task.metric, self.task.higher_is_better)
        try:
            zero = self.zero_shot()
        except NotCached:
            return
        for seed in plan.seeds:
            for name, recipe in self.recipes.items():
                offer: list[tuple[Offer, Record]] = []  # made once, and only if a cell needs it
                steps = [to_json(step) for step in recipe.steps]
                for label, tuning in self.tunings.items():
                    if name not in (recipes or [name]) or label not in (deltas or [label]):
                        continue
                    with suppress(NotCached):
                        full = self.full_tuned(seed) if plan.baseline and plan.data else {}
                        parts = {"zero_shot": zero, "full_tuned": full}
                        parts["emulator_zero_shot"] = self.emulator(recipe, seed, offer)
                        tuned = self.tuned(recipe, tuning, seed, offer) if plan.data else {}
                        if plan.healed and plan.data:
                            parts["healed"] = self.healed(recipe, seed, offer)
                        cell = (name, label, seed)
                        extra = {"recipe_steps": steps}
                        yield make_row(plan, self.identity, cell, metric, parts, tuned, extra)

    def emulator(
        self, recipe: Recipe, seed: int, offer: list[tuple[Offer, Record]]
    ) -> dict[str, Any]:
        """Make an offer and score its emulator."""

        def compute() -> dict[str, Any]:
            passes = [self.learned(training, seed) for training in recipe.trainings]
            with measured(self.device) as cost:
                offer.append(self.make_offer(recipe, seed))
            cost["seconds"] += sum(one["seconds"] for one in passes)
            made, record = offer[0]
            entry = record.offers[0]
            return {
                **self.score(made.model), **cost, "verbatim": record.verbatim,
                "importance": passes[0]["scores"] if passes else None,
                "bytes_offer": offer_bytes(made), "bytes_model": record.model_bytes,
                "positions": entry.middle, "adapter": entry.adapter, "blocks": entry.total,
                "bytes_middle": middle_bytes(made) / max(1, middle_bytes_full(self.model, entry)),
            }  # fmt: skip

        return self.cell({"stage": "offer", **recipe.key(seed)}, compute)

    def tuned(
        self, recipe: Recipe, tuning: Tuning, seed: int, offer: list[tuple[Offer, Record]]
    ) -> dict[str, Any]:
        """Tune one delta through the emulator, plug it, and score both."""
        options = replace(self.options, seed=seed)
        key = {"stage": "tuned", **recipe.key(seed), **method_key(tuning, self.model)}

        def compute() -> dict[str, Any]:
            if not offer:
                offer.append(self.make_offer(recipe, seed))
            made, record = offer[0]
            assert self.data.private is not None
            rows = self.load(self.data.private, made.model)
            with measured(self.device) as cost:
                tuned = run_tune(
                    made, rows, tuning.method, options=options, task=self.task,
                    reach=tuning.reach, device=self.device,
                )  # fmt: skip
            delta = tuned.delta
            if self.exchange is not None and finite(tuned.model):
                name = f"{slug(self.recipes, recipe)}-{slug(self.tunings, tuning)}"
                delta.save(self.exchange / f"delta-{name}-{seed}")
                delta = Delta.load(delta.folder, require_signature=False)  # type: ignore[arg-type]
            return {
                "emulator_tuned": self.score(tuned.model),
                "plug_in": self.plugged(delta, record),
                "bytes_delta": tuned.delta.bytes, "trainable": tuned.trainable,
                "seconds_per_step": tuned.history.seconds / max(tuned.history.steps, 1),
                "history": list(tuned.history.points), **cost,
            }  # fmt: skip

        return self.cell({**key, "options": options_key(options, self.model)}, compute)

    def plugged(self, delta: Delta, record: Record) -> dict[str, Any]:
        """The score of the full model with a delta; unknown where the offer's bounds refuse it."""
        try:
            return self.score(merge_delta(self.model, delta, record))
        except OutOfBounds:
            return {"value": None}

    def zero_shot(self) -> dict[str, Any]:
        """The score of the full model as it is."""
        return self.cell({"stage": "zero_shot"}, lambda: self.score(self.model))

    def full_tuned(self, seed: int) -> dict[str, Any]:
        """The baseline: every weight of the full model tuned on the private data."""
        return self.every_weight({"stage": "full_tuned"}, seed, lambda: self.model)

    def healed(
        self, recipe: Recipe, seed: int, offer: list[tuple[Offer, Record]]
    ) -> dict[str, Any]:
        """Every weight of an offer tuned on the private data, by a tuner who keeps it."""

        def emulator() -> Any:
            if not offer:
                offer.append(self.make_offer(recipe, seed))
            return offer[0][0].model

        return self.every_weight({"stage": "healed", **recipe.key(seed)}, seed, emulator)

    def every_weight(
        self, key: Mapping[str, Any], seed: int, model: Callable[[], Any]
    ) -> dict[str, Any]:
        """Tune every weight of a model at each rate of the plan; the outcome of the best one."""

        def run(options: TrainOptions) -> dict[str, Any]:
            assert self.data.private is not None
            copied = trainable(model())
            rows = self.load(self.data.private, copied)
            with measured(self.device) as cost:
                history = tune_all(
                    copied, rows, self.task, options, self.device, f"{key['stage']}, {options.lr:g}"
                )
            return {**self.score(copied), "history": list(history.points), **cost}

        tried = {}
        for lr in self.plan.full_lr:
            options = replace(self.options, seed=seed, lr=lr)
            named = {**key, "options": options_key(options, self.model)}
            tried[lr] = self.cell(named, partial(run, options))
        return best_rate(tried, self.task.higher_is_better)

    def make_offer(self, recipe: Recipe, seed: int) -> tuple[Offer, Record]:
        """The offer of one recipe and seed."""
        passes = {training: self.learned(training, seed) for training in recipe.trainings}
        scores = passes[recipe.trainings[0]]["scores"] if passes else None  # by the first pass
        adapter = recipe.adapter(len(get_blocks(self.model)), scores).adapter
        steps = [
            replace(step, learned=passes[step.training]["folder"])
            if isinstance(step, LayerReplace) and step.learned is None
            else step
            for step in recipe.steps
        ]
        made, record = make_offer(
            self.model, adapter=adapter, recipe=steps, data=self.public_rows(), task=self.public,
            processor=self.processor, seed=seed, reach=self.plan.reach,
            name=Path(self.plan.model).name,
        )  # fmt: skip
        if self.exchange is not None:
            made.save(folder := self.exchange / f"offer-{slug(self.recipes, recipe)}-{seed}")
            made = Offer.load(folder, require_signature=False)  # its record is saved beside it
        return made, record

    def learned(self, training: Training, seed: int) -> dict[str, Any]:
        """One LayerReplace pass per seed, which all ScaleOT recipes that train alike share.

        Its seconds are counted in full for every offer that is made from it.
        """
        key = {"stage": "learned", "seed": seed, "training": asdict(training)}
        folder = self.folder / "learned" / self.name(key)
        if not folder.exists():  # the outcome without the harmonizers is of no use
            (self.folder / "cells" / f"{self.name(key)}.json").unlink(missing_ok=True)

        def compute() -> dict[str, Any]:
            with measured(self.device) as cost:
                split = Split((0,), len(get_blocks(self.model)))
                frozen = self.model.requires_grad_(False)
                context = Context(frozen, split, self.public, self.public_rows(), seed)
                found = learn(context, training)
            if not finite(found.harmonizers):
                raise OffsiteError("LayerReplace diverged; give its step a lower lr or eta.")
            if not folder.exists():
                found.save(folder)
            return {"scores": found.scores, **cost}

        return {**self.cell(key, compute), "folder": str(folder)}

    def public_rows(self) -> Any:
        """The owner's calibration rows; None where the plan has no such data."""
        return None if self.data.public is None else self.load(self.data.public, self.model)

    def load(self, data: TaskData, model: Any) -> Any:
        """Rows of a data set, made once for each set of classes a model may have."""
        key = (id(data), labels_of(model))
        if key not in self.rows:
            self.rows[key] = data.rows(self.processor, model)
        return self.rows[key]

    def score(self, model: Any) -> dict[str, Any]:
        """The task's evaluation of a model, as JSON; a head for other classes starts fresh."""
        rows = self.load(self.data.evaluation, model)
        labels = self.task.labels(rows)
        if labels and not same_classes(labels_of(model), labels):
            model = copy.deepcopy(model)
            give_head(model, labels)
        if not finite(model):
            return {"value": None}
        result: Evaluation = self.task.evaluate(model.to(self.device), rows)
        return asdict(result)

    def cell(self, key: Mapping[str, Any], compute: Any) -> dict[str, Any]:
        """The cached outcome for a key, computed and written on first use."""
        path = self.folder / "cells" / f"{self.name(key)}.json"
        if path.exists():
            found: dict[str, Any] = read_json(path)
        elif self.cached:
            raise NotCached
        else:
            parts = (self.identity | Identity.of(**key)).parts
            found = {"key": parts, "outcome": known(compute())}
            found["environment"] = environment()
            write_file(path, json.dumps(found, allow_nan=False) + "\n")
        self.environments.append(found["environment"])
        return found["outcome"]  # type: ignore[no-any-return]

    def name(self, key: Mapping[str, Any]) -> str:
        """The hash of everything an outcome depends on."""
        return (self.identity | Identity.of(**key)).digest
