"""What a cell of the lab depends on, and what it becomes: keys, outcomes and rows."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from offsite.codec import to_json
from offsite.deltas import IntrinsicPrompt
from offsite.deltas.method import Method
from offsite.exchange.prompt_decoder import decoder_hash, decoder_tensors
from offsite.files import sha256_file
from offsite.lab.plan import Plan, Row
from offsite.model.heads import head_path
from offsite.model.stored import model_fingerprint
from offsite.scores.scores import Scores
from offsite.tasks import source_identity
from offsite.training.train import TrainOptions

# what a configuration says of where and with what it was made, and nothing of what is computed
MADE = ("dtype", "torch_dtype", "transformers_version", "is_local", "local_files_only")


def method_key(method: Method, model: Any) -> dict[str, Any]:
    """What a tuned delta depends on beside its offer: the method, and the decoder it uses."""
    decoder = decoder_tensors(model) if method.kind == IntrinsicPrompt.kind else {}
    more = {"prompt_decoder": decoder_hash(decoder)} if decoder else {}
    return {"method": to_json(method), **more}


def options_key(options: TrainOptions, model: Any) -> dict[str, Any]:
    """What training depends on: the rate of the head counts only where there is a head."""
    key = asdict(options)
    return key if head_path(model) else {name: key[name] for name in key if name != "head_lr"}


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


def finite(model: Any) -> bool:
    """Whether every number of a model is finite: a run that diverged leaves others."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def known(value: Any) -> Any:
    """An outcome as JSON, with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flatten(
    parts: Mapping[str, Any], emulator: Mapping[str, Any], tuned: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures beside the scores, and under ``details`` what is known of each score.

    Under ``diverged`` stand the scores that are no finite numbers, where there are any.
    """
    keys = ("bytes_offer", "bytes_model", "bytes_middle", "positions", "adapter")
    more = ("bytes_delta", "trainable", "seconds_per_step", "history")
    details = ("value", "stderr", "count", "extra", "items", "weights", "lr", "rates")
    diverged = [name for name, part in parts.items() if part and part["value"] is None]
    return {
        **{key: emulator[key] for key in keys},
        "total": emulator["blocks"],
        **({"importance": emulator["importance"]} if emulator.get("importance") else {}),
        **{key: tuned[key] for key in more if key in tuned},
        "seconds_offer": emulator["seconds"],
        "memory_offer": emulator["memory"],
        **{f"{key}_tune": tuned[key] for key in ("seconds", "memory") if key in tuned},
        "details": {
            name: {key: part[key] for key in details if key in part}
            for name, part in parts.items()
            if name not in diverged
        },
        **({"diverged": diverged} if diverged else {}),
    }


def make_row(
    plan: Plan,
    known_by: Mapping[str, Any],
    cell: tuple[str, str, int],
    metric: tuple[str, bool],
    parts: Mapping[str, Any],
    tuned: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Row:
    """The row of one recipe, delta and seed.

    ``eval_data`` tells its evaluation data from others, ``setup`` everything that the recipes,
    deltas and seeds of a plan share; only rows alike in both differ by their seed alone.

    Args:
        known_by: the plan's :func:`identity`.
        metric: its name, and whether more is better.
        parts: the outcomes of the stages beside tuning, by the score they give.
        tuned: the outcome of tuning; empty where there was none.
        extra: what else the row is to say.
    """
    recipe, delta, seed = cell
    emulator = parts["emulator_zero_shot"]
    parts = {**parts, **{key: tuned[key] for key in ("emulator_tuned", "plug_in") if key in tuned}}
    scores = Scores(
        *metric,
        **{key: part.get("value") for key, part in parts.items()},
        verbatim=emulator.get("verbatim"),
    )
    private = known_by["data"][1]
    shared = {**known_by, "options": asdict(plan.options), "full_lr": plan.full_lr}
    setup = {"setup": digest({**shared, "adapter": plan.adapter})[:12], "eval_data": private}
    setup |= {"eval_name": Path(plan.eval_data).name, "max_length": plan.max_length}
    more = {**setup, **extra, **flatten(parts, emulator, tuned)}
    return Row(plan.model, plan.task, recipe, delta, seed, scores, more)
