"""What the lab is asked to run, and what it answers: plans, recipes and rows."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from offsite.compress import parse_recipe
from offsite.compress.scaleot import learned_count
from offsite.compress.step import Step
from offsite.config import to_json
from offsite.deltas import IntrinsicPrompt
from offsite.deltas.method import Method
from offsite.files import sha256_file
from offsite.heads import head_path
from offsite.prompt_decoder import decoder_hash, decoder_tensors, give_decoder
from offsite.scores import Scores
from offsite.stored import model_fingerprint
from offsite.tasks import load_task, source_identity
from offsite.tasks.task import Task
from offsite.train import TrainOptions


@dataclass(frozen=True)
class Plan:
    """One grid: ``recipes`` x ``deltas`` x ``seeds`` on one model and one task.

    Attributes:
        model: folder or hub name.
        eval_data, data: the private data, to score on and to tune on; without the second, only the
            zero-shot scores are computed.
        calibration: the owner's own data, for recipes that need some; ``calibration_task`` is its
            kind, by default that of the private data.
        skip_bad: leave unreadable pictures out.
        adapter: which blocks are adapter, unless a recipe says otherwise.
        recipes: name to list of steps in JSON form, or to ``{"adapter": ..., "steps": [...]}``.
        deltas: name to method in JSON form.
        options: how to tune; also how the full fine-tuning baseline is trained.
        full_lr: peak learning rate of that baseline; None for 1e-3.
        prompt_decoder: file of the decoder that offers ship, for intrinsic prompts.
        baseline: whether to run it at all (None in ``full_tuned`` otherwise).
    """

    model: str
    eval_data: str
    data: str | None = None
    task: str = "text"
    max_length: int = 256
    skip_bad: bool = False
    adapter: str = "ends:2,2"
    calibration: str | None = None
    calibration_task: str | None = None
    recipes: Mapping[str, Any] = field(default_factory=dict)
    deltas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    options: TrainOptions = field(default_factory=TrainOptions)
    full_lr: float | None = None
    baseline: bool = True
    dtype: str = "float32"
    prompt_decoder: str | None = None

    def tasks(self) -> tuple[Task, Task]:
        """The kind of the private data, and of the owner's own."""
        kind = partial(load_task, max_length=self.max_length, skip_bad=self.skip_bad)
        return kind(self.task), kind(self.calibration_task or self.task)

    def prepare(self, model: Any) -> Any:
        """The full model with the plan's prompt decoder beside it, where there is one."""
        if self.prompt_decoder is not None:
            give_decoder(model, self.prompt_decoder)
        return model


@dataclass(frozen=True)
class Recipe:
    """One recipe of a plan: its steps, and the adapter it is made for.

    ``adapter`` may be ``learned:COUNT``: the blocks that the recipe's LayerReplace pass finds most
    important, as ScaleOT chooses them.
    """

    steps: tuple[Step, ...]
    adapter: str

    @classmethod
    def of(cls, value: Any, adapter: str) -> Recipe:
        """From the plan's form, a list of steps or ``{"adapter", "steps"}``."""
        if isinstance(value, Mapping):
            return cls(tuple(parse_recipe(value.get("steps"))), str(value.get("adapter", adapter)))
        return cls(tuple(parse_recipe(value)), adapter)

    @property
    def learned_blocks(self) -> int | None:
        """COUNT of ``learned:COUNT``, else None."""
        return learned_count(self.adapter)

    def key(self, seed: int) -> dict[str, Any]:
        """What an offer depends on."""
        steps = [to_json(step) for step in self.steps]
        for step in steps:
            if step.get("learned"):  # a folder's path does not say what is in it
                step["learned"] = source_identity(step["learned"])
        return {"adapter": self.adapter, "recipe": steps, "seed": seed}


@dataclass(frozen=True)
class Row:
    """One cell of the grid, with everything a table may want to show."""

    model: str
    task: str
    recipe: str
    delta: str
    seed: int
    scores: Scores
    extra: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The row as one flat JSON object around the scores."""
        names = {"model": self.model, "task": self.task, "recipe": self.recipe}
        return {
            **names,
            "delta": self.delta,
            "seed": self.seed,
            **self.scores.to_json(),
            **self.extra,
        }


def method_key(method: Method, model: Any) -> dict[str, Any]:
    """What a tuned delta depends on beside its offer: the method, and the decoder it uses."""
    decoder = decoder_tensors(model) if method.kind == IntrinsicPrompt.kind else {}
    more = {"prompt_decoder": decoder_hash(decoder)} if decoder else {}
    return {"method": to_json(method), **more}


def options_key(options: TrainOptions, model: Any) -> dict[str, Any]:
    """What training depends on: the rate of the head counts only where there is a head."""
    key = asdict(options)
    return key if head_path(model) else {name: key[name] for name in key if name != "head_lr"}


# what a configuration says of where and with what it was made, and nothing of what is computed
MADE = ("dtype", "torch_dtype", "transformers_version", "is_local", "local_files_only")


def identity(plan: Plan, model: Any, processor: Any) -> dict[str, Any]:
    """What every cell of a plan depends on: model, tokenizer, tasks and data by what they hold."""
    names = (plan.task, plan.calibration_task)
    files = [getattr(task, "file", None) for task in plan.tasks()]
    tasks = [f.model_dump(mode="json") if f else name for f, name in zip(files, names, strict=True)]
    return {
        "model": model_fingerprint(model),
        "config": digest(
            {"model": lasting(model.config.to_dict()), "generation": generation(model)}
        ),
        "processor": processor_hash(processor),
        "task": [*tasks, plan.max_length, plan.dtype],
        "data": [s and source_identity(s) for s in (plan.data, plan.eval_data, plan.calibration)],
    }


def generation(model: Any) -> Any:
    """How a model generates, where it does."""
    found = getattr(model, "generation_config", None)
    return None if found is None else lasting(found.to_dict())


def lasting(value: Any) -> Any:
    """A configuration without the dtype, paths and versions it came with."""
    if isinstance(value, Mapping):
        named = {str(key): part for key, part in value.items()}
        out = (*MADE, "name_or_path")
        return {k: lasting(v) for k, v in named.items() if k not in out and not k.startswith("_")}
    return [lasting(part) for part in value] if isinstance(value, (list, tuple)) else value


def processor_hash(processor: Any) -> str | None:
    """The hash of a tokenizer or image processor as it would be saved."""
    if processor is None:
        return None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="offsite-") as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix == ".json":
                text = path.read_text(encoding="utf-8")
                found[path.name] = digest({"content": lasting(json.loads(text))})
            elif path.is_file():
                found[path.name] = sha256_file(path)
    return digest(found)


def digest(key: Mapping[str, Any]) -> str:
    """The hash of everything an outcome depends on, as the name of its cell."""
    text = json.dumps(key, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def plain(value: Any) -> Any:
    """JSON for what has none: tuples and sets as lists, anything else by its name."""
    return list(value) if isinstance(value, (tuple, set, frozenset)) else str(value)


def flatten(
    parts: Mapping[str, Any], emulator: Mapping[str, Any], tuned: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures beside the scores, and under ``details`` what is known of each score."""
    keys = ("bytes_offer", "bytes_model", "bytes_middle", "positions", "adapter")
    more = ("bytes_delta", "trainable", "seconds_per_step", "history")
    details = ("value", "stderr", "count", "extra", "items")
    return {
        **{key: emulator[key] for key in keys},
        "total": emulator["blocks"],
        **({"importance": emulator["importance"]} if emulator.get("importance") else {}),
        **{key: tuned[key] for key in more if key in tuned},
        "seconds_offer": emulator["seconds"],
        "memory_offer": emulator["memory"],
        **{f"{key}_tune": tuned[key] for key in ("seconds", "memory") if key in tuned},
        "details": {
            name: {key: part[key] for key in details if key in part} for name, part in parts.items()
        },
    }


def slug(named: Mapping[str, Any], value: Any) -> str:
    """The name that a recipe or a delta has in a plan, as part of a folder's name."""
    name = next(name for name, found in named.items() if found == value)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
