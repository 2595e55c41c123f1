"""The stages of ``offsite offer``: read the data, build the recipe, describe the offer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from offsite.audit.gate import Gate
from offsite.audit.recovered import OfferAudit
from offsite.audit.training import evenly_spaced
from offsite.cli.output import Lines, describe, headed, note, warning
from offsite.cli.recipe import RecipeOptions
from offsite.compress.forecast import seconds_of, span
from offsite.compress.recipe import Recipe
from offsite.compress.scaleot.step import resolve_adapter
from offsite.compress.step import check_data
from offsite.errors import OffsiteError
from offsite.exchange.manifest import now
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.exchange.wording import Wording, few, unsent_templates
from offsite.lab.measure import folder_bytes, offer_bytes
from offsite.model.checkpoint import Checkpoint
from offsite.model.heads import labels_of, same_classes
from offsite.model.kind import IMAGE, kind_of_task
from offsite.model.split import Adapter, parse_adapter
from offsite.owner.judgement import judge_emulator
from offsite.owner.offering import check_record
from offsite.report.structure import ranges
from offsite.tasks.data import TaskData, find_source, prepare_all, read_data
from offsite.tasks.image.shapes import check_model
from offsite.tasks.task import Task

Said = tuple[dict[str, Any], Lines]  # for --json, and in lines for people


@dataclass(frozen=True)
class DataSets:
    """The owner's data: to compress with, and to score on."""

    own: TaskData | None
    test: TaskData | None

    @classmethod
    def read(cls, task: Task, data: str | None, eval_data: str | None) -> DataSets:
        """Read both, where they are given or named by a task file.

        Raises:
            OffsiteError: missing or malformed data; file and line are named.
        """
        own = read_data(task, find_source(task, data, "train"), train=True)
        return cls(own, read_data(task, find_source(task, eval_data, "test")))

    def to_score(self, made: Offer) -> Any:
        """Rows to score an offer on: those for it, or else at most 64 rows of the owner's own data.

        A folder of one's own data may have a part for scoring. None without data, and for pictures
        of other classes than the model's head has, as where it has no head of its own.
        """
        given = self.test
        if given is None and self.own is not None:
            given = TaskData(self.own.task, self.own.source)
        if given is None:
            return None
        rows = given.rows(made.processor, made.model)
        labels = given.task.labels(rows)
        if labels and not same_classes(labels_of(made.model), labels):
            note("The model was made for other classes than the data shows, so it is not scored.")
            return None
        return rows if self.test else Subset(rows, evenly_spaced(range(len(rows))))


def open_model(name: str, task: Task, data: DataSets, gate: Gate | None) -> Checkpoint:
    """The model by its name, once every data set is known to fit it; no weight is read.

    Raises:
        OffsiteError: no such model, or an example that it cannot read.
    """
    full = Checkpoint.of(name, task.auto_class)
    sets = (data.own, data.test, gate.data if gate else None)
    if any(one is not None for one in sets):
        prepare_all(sets, full.processor, full.config)
    return full


def decide(
    choice: RecipeOptions, full: Checkpoint, adapter: str, own: TaskData | None, record: Path
) -> tuple[Recipe, Adapter]:
    """The recipe and the adapter of an offer; a default is said.

    Raises:
        OffsiteError: options that contradict each other, data that is missing, or a record that
            belongs to another model.
    """
    rule = parse_adapter(adapter)
    recipe = choice.choose(full, rule, own is not None)
    if notice := choice.notice(own is not None):
        note(notice)
    recipe.check_learned(choice.learned)
    check_data(recipe.steps, own)
    check_record(record, full)
    return recipe, resolve_adapter(rule, choice.learned, full)


def expiry(days: int | None) -> datetime | None:
    """When an offer that is good for so many days stops being good; None for never."""
    return None if days is None else now() + timedelta(days=days)


def attacked(found: OfferAudit | None) -> Said:
    """What attackers recovered of an offer."""
    if not found:
        return {}, []
    best = found.best
    line = f"  recovered    {best.recovered:.1%}, by: {best.name}"
    return {"recovered": best.recovered}, [line]


def scored(made: Offer, task: Task, data: DataSets, device: torch.device) -> Said:
    """The score of the emulator before tuning, and a warning where it hardly works."""
    result: dict[str, Any] = {}
    lines: Lines = []
    zero_shot = None
    if (rows := data.to_score(made)) is not None:
        model = made.model.to(device)
        each = seconds_of(model, task.collate([rows[0]]))
        note(f"scoring: {len(rows):,} rows, about {span(each * len(rows))} on this machine")
        zero_shot = task.evaluate(model, rows)
        result = {"emulator_zero_shot": zero_shot.value, "metric": zero_shot.metric}
        result["rows_scored"] = len(rows)
        told = f"the emulator, before tuning, on {len(rows):,} rows"
        lines.append(f"  zero-shot    {describe(zero_shot)} ({told})")
    if judged := judge_emulator(made.model, zero_shot):
        result["warning"] = judged
        lines.append(warning(judged))
    return result, lines


def summary(out: Path, path: Path, made: Offer, private: Record) -> Said:
    """What is said of an offer that was written."""
    everything, entry = Record.load(path), private.offers[0]
    size, words = offer_bytes(made), Wording.of(made.processor, made.model.config)
    result: dict[str, Any] = {
        "offer": str(out),
        "record": str(path),
        "id": made.manifest.id,
        "bytes_offer": size,
        "bytes_model": private.model_bytes,
        "bytes_folder": folder_bytes(out),
        "adapter": entry.adapter,
        "middle": entry.middle,
        "recipe": entry.recipe,
        "verbatim": private.verbatim,
        "verbatim_so_far": everything.verbatim,
        "words": asdict(words),
    }
    lines: Lines = [
        headed(out, f"offer {made.manifest.id[:8]} of {made.manifest.model_name}"),
        f"  blocks       adapter {ranges(entry.adapter)}, middle {len(entry.middle)} of "
        f"{entry.total - len(entry.adapter)}",
        f"  bytes        {size:,} of the model's {private.model_bytes:,} "
        f"({size / private.model_bytes:.1%})",
        f"  verbatim     {private.verbatim:.1%} of the parameters leave as they are",
    ]
    if len(everything.offers) > 1:
        lines.append(
            f"  so far       {everything.verbatim:.1%} over {len(everything.offers)} offers"
        )
    if said := ", ".join(words.lines()):
        lines.append(f"  words sent   {said} (--leave-out)")
    if unsent := unsent_templates(made.processor):
        lines.append(
            warning(f"Only the default chat template is sent; these are not sent: {few(unsent)}.")
        )
    kind = kind_of_task(made.manifest.task)
    if made.processor is None:
        lines.append(
            warning(
                f"The model has no {kind.processor_name}, so the offer has none and its tuner "
                "cannot read data; put its files into the folder of the model and make the offer "
                "again."
            )
        )
    elif kind is IMAGE:
        try:
            check_model(made.model, made.processor)
        except OffsiteError as error:
            result["warning"] = str(error)
            lines.append(warning(f"This offer cannot be tuned. {error}"))
    lines.append(f"  record       {path} (private: keep it, never send it)")
    return result, lines
