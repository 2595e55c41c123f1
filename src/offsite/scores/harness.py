"""Scores through EleutherAI's lm-eval, on models in memory and local task files.

A model is handed over as it is: an emulator, a tuned emulator, a plugged or a full model. Tasks of
this package become task definitions of the harness, so nothing is fetched; a task of the harness's
own is found by name and fetches its data.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offsite.errors import MissingExtraError, OffsiteError
from offsite.tasks.questions.choice import MultipleChoice
from offsite.tasks.questions.open_question import OpenQuestions
from offsite.tasks.task import Evaluation, Task
from offsite.tasks.text.causal import CausalText, read_documents

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
    tasks: Sequence[str] | Mapping[str, tuple[Task, str | Path]],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    limit: int | None = None,
    shots: int | None = None,
) -> dict[str, Evaluation]:
    """Score a model with lm-eval.

    Args:
        model: a causal language model in memory, on the device to compute on.
        tokenizer: its tokenizer.
        tasks: names of the harness's own tasks (which may need a network), or a task of this
            package with a data path under each name.
        max_length: tokens the model reads at once; None for as many as it can.
        limit: only the first so many examples of each task.
        shots: solved examples in the prompt; None for what the task says.

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
        given = _own(tasks) if isinstance(tasks, Mapping) else _named(tasks, manager)
        model.eval()
        runner = HFLM(model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        if max_length is not None:
            if not 2 <= max_length <= runner.max_length:
                raise OffsiteError(
                    f"A length of {max_length} tokens is not one of this model; use 2 to "
                    f"{runner.max_length}."
                )
            runner._max_length = max_length
        found = lm_eval.simple_evaluate(
            runner,
            tasks=given,
            task_manager=manager,
            limit=limit,
            num_fewshot=shots,
            log_samples=True,
            bootstrap_iters=1000,
        )
    return {
        name: _evaluation(found["results"][name], found["samples"].get(name, []))
        for name in found["results"]
    }


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


def harness_tasks(tasks: Mapping[str, tuple[Task, str | Path]]) -> list[dict[str, Any]]:
    """Definitions of tasks of this package in the harness's own terms, with their examples.

    Raises:
        OffsiteError: data that cannot be read, or images.
    """
    return [_definition(name, task, source) for name, (task, source) in tasks.items()]


def _own(tasks: Mapping[str, tuple[Task, str | Path]]) -> list[Any]:
    from lm_eval.api.task import ConfigurableTask

    return [ConfigurableTask(config=config) for config in harness_tasks(tasks)]


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


def _definition(name: str, task: Task, source: str | Path) -> dict[str, Any]:
    rows: list[dict[str, Any]]
    if isinstance(task, MultipleChoice):
        asked = task.read(source)
        rows = [{"text": q.prompt, "choices": list(q.choices), "target": q.answer} for q in asked]
        metrics = ["acc", "acc_norm"]
        options: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": "choices"}
        options |= {"target_delimiter": task.file.separator}
    elif isinstance(task, OpenQuestions):
        rows = [{"text": q.prompt, "target": list(q.answers)} for q in task.read(source)]
        metrics = ["exact_match"]
        generation = {"until": ["\n"], "do_sample": False, "max_gen_toks": task.file.new_tokens}
        options = {"output_type": "generate_until", "generation_kwargs": generation}
    elif type(task) is CausalText:
        texts = [text for text in read_documents(Path(source)) if isinstance(text, str)]
        if not texts:
            raise OffsiteError(
                f"'{source}' holds completions, whose perplexity lm-eval has no task for."
            )
        rows = [{"text": "", "target": text} for text in texts]
        metrics = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
        options = {"output_type": "loglikelihood_rolling"}
    else:
        raise OffsiteError(
            f"lm-eval cannot score the task '{task.name}'; score it without --harness."
        )
    return {
        "task": name,
        "custom_dataset": lambda **_: _split(rows),
        "test_split": "test",
        "doc_to_text": lambda row: row["text"],
        "doc_to_target": lambda row: row["target"],
        "metric_list": [_metric(metric) for metric in metrics],
        **options,
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
