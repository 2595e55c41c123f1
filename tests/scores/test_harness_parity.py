"""Every multiple-choice task by its name scores each question as lm-eval's own task of that name.

The harness's definition is read from its own file and given the questions in the form of the hub's
data set, so its prompt, its choices and its order of them are compared too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from offsite.scores.harness import METRICS
from offsite.tasks import load_task
from offsite.tasks.data import rows_of
from offsite.tasks.questions.choice import MultipleChoice
from offsite.tasks.questions.file import builtin_names
from tests.support.models import language_model

COUNT = 10


def arc(row: dict[str, Any], stem: str = "question") -> dict[str, Any]:
    labels = "ABCDE"[: len(row["choices"])]
    choices = {"text": row["choices"], "label": list(labels)}
    return {stem: row["question"], "choices": choices, "answerKey": labels[row["answer"]]}


def piqa(row: dict[str, Any]) -> dict[str, Any]:
    first, second = row["choices"]
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": row["answer"]}


def sciq(row: dict[str, Any]) -> dict[str, Any]:
    wrong = [c for i, c in enumerate(row["choices"]) if i != row["answer"]]
    names = {f"distractor{i}": text for i, text in enumerate(wrong, 1)}
    right = row["choices"][row["answer"]]
    return {
        **names,
        "correct_answer": right,
        "question": row["question"],
        "support": row["support"],
    }


OWN: dict[str, tuple[str, str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "arc_easy": ("arc/arc_easy.yaml", "val.jsonl", arc),
    "arc_challenge": ("arc/arc_easy.yaml", "val.jsonl", arc),
    "openbookqa": ("openbookqa/openbookqa.yaml", "val.jsonl", lambda r: arc(r, "question_stem")),
    "piqa": ("piqa/piqa.yaml", "val.jsonl", piqa),
    "csqa": ("commonsense_qa/default.yaml", "val.jsonl", arc),
    "sciq": ("sciq/sciq.yaml", "val.jsonl", sciq),
    "sst2": ("glue/sst2/default.yaml", "dev.tsv", lambda r: r),
}


def test_every_named_task_is_compared() -> None:
    choices = {n for n in builtin_names() if isinstance(load_task(n), MultipleChoice)}
    assert choices == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_questions_score_as_in_the_harness_itself(
    name: str, tokenizer: Any, shared: Path, tmp_path: Path
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    import datasets
    import yaml  # type: ignore[import-untyped]
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    definition, file, as_on_the_hub = OWN[name]
    with (shared / "data" / "qa" / name / file).open(encoding="utf-8") as lines:
        chosen = list(islice(lines, COUNT))
    path = tmp_path / file
    path.write_text("".join(chosen), encoding="utf-8")
    if file.endswith(".tsv"):
        cut = [line.rstrip("\n").split("\t") for line in chosen]
        rows = [{"sentence": sentence, "label": int(label)} for sentence, label in cut]
    else:
        rows = [json.loads(line) for line in chosen]
    task = load_task(name)
    model = language_model("llama", max_position_embeddings=2048)
    ours = task.evaluate(model, rows_of(task, path, tokenizer, model, train=False))

    folder = Path(lm_eval.__file__).parent / "tasks"
    config = yaml.safe_load((folder / definition).read_text(encoding="utf-8"))
    config.pop("tag", None)
    own = datasets.Dataset.from_list([as_on_the_hub(row) for row in rows])
    splits = {"train": own, "validation": own, "test": own}
    config |= {"task": name, "test_split": "test", "custom_dataset": lambda **_: splits}
    found = lm_eval.simple_evaluate(
        HFLM(model, tokenizer=tokenizer, backend="causal", batch_size=8),
        tasks=[ConfigurableTask(config=config)],
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    assert ours.items == tuple(float(sample["acc"]) for sample in samples)
    assert len(ours.items) == COUNT and ours.metric == METRICS["acc"][0]
    if "acc_norm" in samples[0]:
        normed = sum(sample["acc_norm"] for sample in samples) / COUNT
        assert ours.extra["accuracy_norm"] == pytest.approx(normed)
