"""Scores through EleutherAI's lm-eval, on models in memory and local task files.

A model is handed over as it is: an emulator, a tuned emulator, a plugged or a full model. Tasks of
this package become task definitions of the harness, so nothing is fetched; a task of the harness's
own is found by name and fetches its data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from offsite.errors import MissingExtraError, OffsiteError
from offsite.tasks.data import TaskData
from offsite.tasks.questions.likelihood import check_told_apart
from offsite.tasks.questions.open_question import stop_tokens
from offsite.tasks.task import Evaluation, has_probabilities
from offsite.tasks.text.tokens import without_end

if TYPE_CHECKING:
    from collections.abc import Iterator

METRICS = {
    "acc": ("accuracy", True),
    "acc_norm": ("accuracy_norm", True),
    "exact_match": ("exact_match", True),
    "word_perplexity": ("word_perplexity", False),
    "byte_perplexity": ("byte_perplexity", False),
    "bits_per_byte": ("bits_per_byte", False),
    "perplexity": ("perplexity", False),
}


def harness_scores(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str] | Mapping[str, TaskData],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
) -> dict[str, Evaluation]:
    """Score a model with lm-eval.

    Args:
        model: a causal language model in memory, on the device to compute on.
        tokenizer: its tokenizer.
        tasks: names of the harness's own tasks (which may need a network), or data of a task of
            this package under each name.
        max_length: tokens the model reads at once; None for as many as it can.

    Returns:
        For each task its main metric, the others in ``extra`` (``accuracy_norm``,
        ``accuracy_norm_stderr`` ...), and ``items``: the main metric of each example, in order.

    Raises:
        MissingExtraError: lm-eval is not installed.
        OffsiteError: an unknown task, data that cannot be read, a task the harness cannot score,
            or a length over the model's.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm-eval", "eval", "Scoring through the harness") from error
    with _quiet():
        local = isinstance(tasks, Mapping)
        manager = TaskManager(include_defaults=not local)  # reading all its own takes seconds
        stops = [tokenizer.decode([stop]) for stop in stop_tokens(model, tokenizer)]
        given = _own(tasks, stops) if isinstance(tasks, Mapping) else _named(tasks, manager)
        model.eval()
        reader = without_end(tokenizer)
        runner = HFLM(model, tokenizer=reader, backend="causal", batch_size=batch_size)
        if max_length is not None:
            if not 2 <= max_length <= runner.max_length:
                raise OffsiteError(
                    f"This model cannot read {max_length} tokens at once; use 2 to "
                    f"{runner.max_length}."
                )
            runner._max_length = max_length
        with _odd_numbers(model) as odd:
            found = lm_eval.simple_evaluate(
                runner,
                tasks=given,
                task_manager=manager,
                log_samples=True,
                bootstrap_iters=1000,
            )
    done = {
        name: _evaluation(found["results"][name], found["samples"].get(name, []))
        for name in found["results"]
    }
    return {name: _no_number(one) for name, one in done.items()} if odd else done


def find_tasks(names: Sequence[str]) -> None:
    """See that the harness has tasks of these names, and their data, before a model is loaded.

    Raises:
        MissingExtraError: lm-eval is not installed.
        OffsiteError: an unknown task, or data that cannot be fetched.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm-eval", "eval", "Scoring through the harness") from error
    with _quiet():
        _named(names, TaskManager())


def harness_tasks(tasks: Mapping[str, TaskData]) -> list[dict[str, Any]]:
    """Definitions of tasks of this package in the harness's own terms, with their examples.

    Raises:
        OffsiteError: data that cannot be read, or images.
    """
    return [_definition(name, data) for name, data in tasks.items()]


def _own(tasks: Mapping[str, TaskData], stops: Sequence[str]) -> list[Any]:
    from lm_eval.api.task import ConfigurableTask

    configs = harness_tasks(tasks)
    for config in configs:
        if "generation_kwargs" in config:
            config["generation_kwargs"]["until"] = list(stops)
    return [ConfigurableTask(config=config) for config in configs]


@contextmanager
def _odd_numbers(model: Any) -> Iterator[list[bool]]:
    """A list that is not empty once a forward has given logits without probabilities."""
    found: list[bool] = []

    def look(module: Any, args: Any, output: Any) -> None:
        if not found and not bool(has_probabilities(output.logits).all()):
            found.append(True)

    handle = model.register_forward_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def _no_number(found: Evaluation) -> Evaluation:
    """An evaluation without values, for logits that are not numbers."""
    nothing = dict.fromkeys(found.extra, math.nan)
    return replace(found, value=math.nan, stderr=None, extra=nothing, items=())


def _named(tasks: Sequence[str], manager: Any) -> list[Any]:
    known = set(manager.all_tasks)
    for name in tasks:
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 3))
            raise OffsiteError(
                f"lm-eval has no task '{name}'{f' (near it: {near})' if near else ''}; see "
                "lm-eval ls tasks, or give a task file of your own."
            )
        try:
            manager.load([name])
        except Exception as error:  # of any library that a task fetches its data through
            raise OffsiteError(
                f"lm-eval could not get the data of its task '{name}' ({type(error).__name__}); "
                "that needs a network, or data of yours with --task and --data."
            ) from error
    return list(tasks)


def _definition(name: str, data: TaskData) -> dict[str, Any]:
    asked = data.task.harness(data.documents())
    return {
        "task": name,
        "custom_dataset": lambda **_: _split(asked.rows),
        "test_split": "test",
        "doc_to_text": lambda row: row["text"],
        "doc_to_target": lambda row: row["target"],
        "metric_list": [_metric(metric) for metric in asked.metrics],
        "output_type": asked.output,
        **asked.options,
    }


def _metric(name: str) -> dict[str, Any]:
    mean = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
    mean["bits_per_byte"] = "bits_per_byte"
    metric = {"metric": name, "aggregation": mean.get(name, "mean")}
    if name == "exact_match":
        return {**metric, "higher_is_better": True, "ignore_case": True, "ignore_punctuation": True}
    return {**metric, "higher_is_better": METRICS[name][1]}


def _split(rows: Sequence[Mapping[str, Any]]) -> Any:
    import datasets

    return {"test": datasets.Dataset.from_list([dict(row) for row in rows])}


def _evaluation(result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Evaluation:
    """One result table of the harness as an :class:`Evaluation`."""
    values: dict[str, float] = {}
    for key, value in result.items():
        metric, _, _ = key.partition(",")
        base = metric.removesuffix("_stderr")
        if base in METRICS and isinstance(value, (int, float)):
            values[METRICS[base][0] + metric[len(base) :]] = float(value)
    main = next((m for m, _ in METRICS.items() if METRICS[m][0] in values), None)
    if main is None:
        raise OffsiteError(
            "The harness gave none of the metrics offsite reads: " + ", ".join(METRICS) + "."
        )
    label, higher = METRICS[main]
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    if main == "acc":
        check_told_apart([[resp[0] for resp in s["filtered_resps"]] for s in ordered])
    found = [sample[main] for sample in ordered if isinstance(sample.get(main), (int, float))]
    items = tuple(float(value) for value in found)
    return Evaluation(
        label, values[label], higher, len(samples), values.get(f"{label}_stderr"), values, items
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's notes off the screen; some of them quote examples."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
