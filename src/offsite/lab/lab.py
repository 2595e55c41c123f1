"""The researcher's side: both roles and the full fine-tuning baseline in one run.

A plan is a grid of recipes, deltas and seeds on one model and one task. Every cell is cached under
the hash of everything it depends on, so a plan can be interrupted, extended and run again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from offsite.codec import to_json
from offsite.exchange.delta import Delta
from offsite.files import read_json, write_file
from offsite.lab import emulators, stages
from offsite.lab.baselines import best_rate
from offsite.lab.cells import (
    Cell,
    CellGraph,
    NotCached,
    Stage,
    decode_key,
    identity,
    known,
    method_key,
    options_key,
    plan_cells,
)
from offsite.lab.checking import PlanData
from offsite.lab.emulators import Emulator
from offsite.lab.environment import environment
from offsite.lab.plan import Plan, Row, slug
from offsite.lab.rows import make_row
from offsite.lab.setting import Setting
from offsite.training.identity import Identity
from offsite.training.memory import trim_memory


class Lab:
    """Runs a plan and caches finished cells and emulators under ``folder``.

    With ``exchange`` the two roles exchange folders, as in a real deployment: each offer, record
    and delta is written there and read back. With ``cached`` nothing is computed, and rows that
    lack a cell are left out.
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
        self.setting = Setting(plan, device, data)
        self.recipes, self.tunings = plan.recipes, self.setting.tunings
        self.identity = identity(plan, self.setting.loaded, self.setting.processor)
        self.environments: list[dict[str, str]] = []  # what the cells used were computed on
        self.last: tuple[tuple[str, int], Emulator] | None = None  # cells often share one

    def run(self) -> Iterator[Row]:
        """Every row of the plan, cached or computed now."""
        for seed, recipe, delta in product(self.plan.seeds, self.recipes, self.tunings):
            for decode in ("", *self.plan.decodings(delta)):
                with suppress(NotCached):
                    yield self.row(recipe, delta, seed, decode)

    def row(self, recipe: str, delta: str, seed: int, decode: str = "") -> Row:
        """The row of one recipe, delta and seed; with ``decode``, the plug-in is the decoded one.

        Raises:
            NotCached: a cell of it is missing, and nothing is to be computed.
        """
        plan, offer = self.plan, Cell("offer", seed, recipe)
        parts = {"zero_shot": self.outcome(Cell("zero_shot"))}
        trains = plan.data is not None
        parts["full_tuned"] = self.best("full_tuned", seed) if plan.baseline and trains else {}
        parts["emulator_zero_shot"] = self.outcome(offer)
        tuned = self.outcome(Cell("tuned", seed, recipe, delta)) if trains else {}
        if trains and decode:
            found = self.outcome(Cell("decoded", seed, recipe, delta, decode))
            tuned = {**tuned, "plug_in": found}
            delta = f"{delta}, decoded: {decode}"
        if plan.healed and trains:
            parts["healed"] = self.best("healed", seed, recipe)
        if plan.healed_tokens and trains:
            parts["healed_public"] = self.best("healed", seed, recipe, plan.healed_tokens)
        extra = {"recipe_steps": [to_json(step) for step in self.recipes[recipe].steps]}
        metric = (self.setting.task.metric, self.setting.task.higher_is_better)
        return make_row(plan, self.identity, (recipe, delta, seed), metric, parts, tuned, extra)

    def best(self, stage: Stage, seed: int, recipe: str = "", tokens: int = 0) -> dict[str, Any]:
        """The outcome of tuning every weight at the best learning rate of the plan."""
        rates = self.plan.healing if stage == "healed" else self.plan.full_lr
        tried = {lr: self.outcome(Cell(stage, seed, recipe, lr=lr, tokens=tokens)) for lr in rates}
        return best_rate(tried, self.setting.task.higher_is_better)

    def missing(self) -> CellGraph:
        """The cells that are still to be computed, each after those of them that it needs.

        A finished cell is missing again if other cells need its files and they were deleted.
        """
        found: CellGraph = {}
        for cell, needs in reversed(plan_cells(self.plan).items()):
            wanted = any(cell in needs for needs in found.values())
            if not self.path(cell).exists() or (wanted and not self.left(cell)):
                found[cell] = needs
        return dict(reversed(found.items()))

    def left(self, cell: Cell) -> bool:
        """Whether the files that a finished cell leaves for others are on disk."""
        if cell.stage == "learned":
            return self.pass_folder(cell).is_dir()
        if cell.stage == "tuned":
            return True  # what needs its delta tunes it again
        folder = self.emulator_folder(cell.recipe, cell.seed)
        return folder is None or (folder / emulators.OFFER).is_dir()

    def do(self, cell: Cell) -> None:
        """Compute a cell of :meth:`missing`, and write the files that other cells need."""
        if cell.stage == "offer":
            self.emulator(cell.recipe, cell.seed)
        self.outcome(cell)

    def outcome(self, cell: Cell) -> dict[str, Any]:
        """The outcome of a cell, computed and written on first use.

        Raises:
            NotCached: it is missing, and nothing is to be computed.
        """
        path = self.path(cell)
        if path.exists() and (cell.stage != "learned" or self.left(cell)):
            found: dict[str, Any] = read_json(path)
        elif self.cached:
            raise NotCached
        else:
            parts = (self.identity | Identity.of(**self.key(cell))).parts
            found = {"key": parts, "outcome": known(self.compute(cell))}
            trim_memory()
            found["environment"] = environment()
            write_file(path, json.dumps(found, allow_nan=False) + "\n")
        self.environments.append(found["environment"])
        return found["outcome"]  # type: ignore[no-any-return]

    def compute(self, cell: Cell) -> Mapping[str, Any]:
        """Compute the outcome of a cell, cached or not."""
        setting, options = self.setting, replace(self.setting.options, seed=cell.seed)
        if cell.stage == "zero_shot":
            return setting.score(setting.model)
        if cell.training is not None:
            return stages.learn_pass(setting, cell.training, cell.seed, self.pass_folder(cell))
        if cell.stage == "full_tuned":
            options = replace(options, lr=cell.lr)
            return stages.tune_every_weight(setting, setting.model, options, str(cell))
        if cell.stage == "decoded":
            return self.decoded(cell)
        made = self.emulator(cell.recipe, cell.seed)
        if cell.stage == "offer":
            passes = self.passes(cell.recipe, cell.seed).values()
            scores = next((one["scores"] for one in passes), None)
            return stages.score_offer(setting, made, scores)
        if cell.stage == "healed":
            options = replace(options, lr=cell.lr)
            return stages.tune_every_weight(
                setting, made.offer.model, options, str(cell), public_tokens=cell.tokens
            )
        tuning = self.tunings[cell.delta]
        folder = None
        if self.exchange is not None:
            named = slug(self.recipes, self.recipes[cell.recipe]), slug(self.tunings, tuning)
            folder = self.exchange / f"delta-{'-'.join(named)}-{cell.seed}"
        elif self.plan.decode:
            folder = self.delta_folder(cell)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
        return stages.tune_and_plug(setting, made, tuning, options, folder)

    def decoded(self, cell: Cell) -> Mapping[str, Any]:
        """The outcome of decoding a delta; the delta is tuned again if it is not on disk."""
        tuned = replace(cell, stage="tuned", decode="")
        delta = self.kept_delta(tuned)
        if delta is None:
            self.compute(tuned)
            delta = self.kept_delta(tuned)
        if delta is None:
            return {"value": None}  # tuning diverged
        made, how = self.emulator(cell.recipe, cell.seed), self.plan.decode[cell.decode]
        return stages.decode_and_score(self.setting, made, delta, replace(how, seed=cell.seed))

    def kept_delta(self, cell: Cell) -> Delta | None:
        """The delta on disk of a cell that tunes; None where there is none for its emulator."""
        if not (folder := self.delta_folder(cell)).is_dir():
            return None
        delta = Delta.load(folder, require_signature=False)
        parent = self.emulator(cell.recipe, cell.seed).offer.manifest.id
        return delta if delta.manifest.parent == parent else None

    def delta_folder(self, cell: Cell) -> Path:
        """The folder of a delta that will be decoded."""
        return self.folder / "deltas" / self.path(cell).stem

    def emulator(self, recipe: str, seed: int) -> Emulator:
        """The emulator of one recipe and seed: the last one used, from disk, or made now."""
        if self.last is None or self.last[0] != (recipe, seed):
            self.last = None  # its memory is free before the next takes some

            def make() -> Emulator:
                passes = self.passes(recipe, seed)
                return stages.make_emulator(self.setting, self.recipes[recipe], seed, passes)

            folder = self.emulator_folder(recipe, seed)
            made = make() if folder is None else emulators.kept(folder, make)
            if self.exchange is not None:
                name = f"offer-{slug(self.recipes, self.recipes[recipe])}-{seed}"
                made = emulators.sent(made, self.exchange / name)
            self.last = ((recipe, seed), made)
        return self.last[1]

    def emulator_folder(self, recipe: str, seed: int) -> Path | None:
        """The folder of an emulator; None if it is not kept because it is made quickly."""
        chosen = self.recipes[recipe]
        kept = emulators.worth_keeping(chosen) or self.plan.decode  # its deltas know it by its id
        if self.exchange is not None or not kept:
            return None
        model = self.setting.loaded
        name = emulators.emulator_name(self.identity, self.plan, chosen, seed, model)
        return self.folder / "emulators" / name

    def passes(self, recipe: str, seed: int) -> stages.Passes:
        """The LayerReplace passes of a recipe, shared by recipes with the same training.

        Their seconds are counted in full for every offer that is made from them.
        """
        cells = {t: Cell("learned", seed, training=t) for t in self.recipes[recipe].trainings}
        return {
            training: {**self.outcome(cell), "folder": str(self.pass_folder(cell))}
            for training, cell in cells.items()
        }

    def pass_folder(self, cell: Cell) -> Path:
        """The folder of the harmonizers of a LayerReplace pass."""
        return self.folder / "learned" / self.path(cell).stem

    def key(self, cell: Cell) -> dict[str, Any]:
        """What the outcome of a cell depends on, besides the settings of the whole plan."""
        options = partial(replace, self.setting.options, seed=cell.seed)
        key: dict[str, Any] = {"stage": cell.stage}
        if cell.training is not None:
            return {**key, "seed": cell.seed, "training": asdict(cell.training)}
        if cell.recipe:
            key |= self.recipes[cell.recipe].key(cell.seed)
        if cell.delta:
            key |= method_key(self.tunings[cell.delta], self.setting.loaded)
            key["options"] = options_key(options(), self.setting.loaded)
        if cell.tokens:
            key["tokens"] = cell.tokens
        if cell.decode:
            key |= decode_key(replace(self.plan.decode[cell.decode], seed=cell.seed))
        if cell.lr is not None:
            key["options"] = options_key(options(lr=cell.lr), self.setting.loaded)
        return key

    def path(self, cell: Cell) -> Path:
        """The file of a cell, named by the hash of everything that its outcome depends on."""
        name = (self.identity | Identity.of(**self.key(cell))).digest
        return self.folder / "cells" / f"{name}.json"
