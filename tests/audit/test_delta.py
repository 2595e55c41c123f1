"""The data owner's audits: what was learnt by heart is found, and what was not is not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offsite.audit.canaries import Canary, exposures, make_canaries, write_with_canaries
from offsite.audit.delta import audit_delta, losses
from offsite.audit.membership import membership
from offsite.audit.suspect import check_offer, not_judged
from offsite.compress.drop import Drop
from offsite.deltas import parse_method
from offsite.errors import OffsiteError
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from offsite.training.options import TrainOptions
from tests.support import Run
from tests.support.models import LANGUAGE, language_model, vision_model
from tests.support.trap import WATCHED, area_under_curve, make_trap

CPU = torch.device("cpu")
WORDS = [
    "cat",
    "dog",
    "mat",
    "log",
    "bird",
    "tree",
    "sat",
    "sang",
    "while",
    "the",
    "and",
    "on",
    "a",
    "in",
]


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of random words, of which no two are alike."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(24)) for _ in range(count)]


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_area_is_what_counting_pairs_gives(shift: float) -> None:
    draw = np.random.default_rng(0)
    inside = draw.normal(-shift, size=150).round(1)  # with ties
    outside = draw.normal(size=200).round(1)
    found = membership(inside.tolist(), outside.tolist())
    slow = area_under_curve((-inside).tolist(), (-outside).tolist())
    assert found.auc == pytest.approx(slow)
    assert found.low < found.auc < found.high
    assert found.tpr == pytest.approx(float((inside < np.sort(outside)[2]).mean()))


def test_exposure_is_the_rank_of_the_secret_in_bits() -> None:
    canaries = make_canaries(6, seed=1)
    secret = {c.text() for c in canaries}
    assert len({c.name for c in canaries}) == 6 and {c.times for c in canaries} == {1, 4, 16}

    def learnt(found: Any) -> list[float]:
        return [-1.0 if text in secret else 0.0 for text in found]

    assert all(e == pytest.approx(np.log2(128)) for e in exposures(canaries, learnt, 127, 0))

    def last(found: Any) -> list[float]:
        return [1.0 if text in secret else 0.0 for text in found]

    assert all(e == pytest.approx(0, abs=1e-9) for e in exposures(canaries, last, 127, 0))


def test_canaries_stand_in_the_data_as_often_as_they_say(tmp_path: Path) -> None:
    canary = Canary("Badefigo", "123456", 4)
    write_with_canaries(path := tmp_path / "x.jsonl", ["one", "two"], [canary], seed=0)
    lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(["one", "two", *[canary.text()] * 4])
    assert path.stat().st_mode & 0o077 == 0


def test_many_epochs_are_found_out_and_no_step_is_not(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "private.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts(60)))
    offer, _ = make_offer(
        language_model("llama", hidden_size=32), adapter=ends(2, 2), recipe=[Drop(keep=1)],
        processor=tokenizer, device="cpu",
    )  # fmt: skip
    found = {}
    for steps, lr in ((1, 1e-9), (150, 2e-2)):
        options = TrainOptions(steps=steps, lr=lr, batch_size=16)
        found[steps] = audit_delta(
            offer, path, parse_method({"kind": "full"}), options=options, max_length=64,
            device=CPU, canaries=6, candidates=60,
        ).leaks[0]  # fmt: skip
    assert found[1].membership.low < 0.5 < found[1].membership.high
    assert found[150].membership.auc > 0.75 and found[150].membership.low > 0.6
    assert found[150].exposure[16] > found[1].exposure[16]


def test_few_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one paragraph that is too short")
    with pytest.raises(OffsiteError, match="has 0 texts that can be audited; give 40 or more"):
        audit_delta(
            make_trap().offer, tmp_path / "x.txt", parse_method({"kind": "full"}),
            options=TrainOptions(), device=CPU,
        )  # fmt: skip


def test_the_trap_is_found_before_tuning() -> None:
    found = [finding for finding in check_offer(make_trap().offer) if finding.count]
    assert found[0].what == "units that fire on single tokens"
    assert found[0].count == len(WATCHED) and found[0].where == "block 0, mlp.c_proj"


@pytest.mark.parametrize("family", LANGUAGE)
def test_usual_models_have_nothing_odd(family: str, tokenizer: Any) -> None:
    offer, _ = make_offer(
        language_model(family), adapter=ends(1, 1), recipe=[Drop(keep=1)],
        processor=tokenizer, device="cpu",
    )  # fmt: skip
    findings = check_offer(offer)
    assert findings and not [finding for finding in findings if finding.count]


@pytest.mark.parametrize(
    ("family", "reason"), [("opt", "those with ReLU are silent"), ("vit", "does not read tokens")]
)
def test_what_cannot_be_judged_is_said(family: str, reason: str, run: Run, tmp_path: Path) -> None:
    task = load_task("text" if family == "opt" else "image-classification")
    model = language_model("opt") if family == "opt" else vision_model("vit")
    offer, _ = make_offer(model, adapter=ends(1, 1), task=task, device="cpu")
    offer.save(tmp_path / "offer")
    status, out, err = run("check", "offer", tmp_path / "offer")
    assert status == 0 and "not judged" in out and reason in out, err
    assert not_judged(make_trap().offer) is None


def test_the_commands(run: Run, tmp_path: Path) -> None:
    make_trap().offer.save(tmp_path / "offer")
    status, out, err = run("check", "offer", tmp_path / "offer", "--json")
    assert status == 1 and json.loads(out)["odd"], err
    path = tmp_path / "private.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts(40)))
    words: tuple[object, ...] = ("audit", "delta", tmp_path / "offer", "--data", path)
    words += ("--steps", 1, "--canaries", 3, "--max-length", 32, "--device", "cpu", "--json")
    status, out, err = run(*words)
    assert status == 0, err
    found = json.loads(out)
    assert found["members"] == 20 and 0 <= found["leaks"][0]["membership"]["auc"] <= 1


def test_models_of_half_precision_are_audited_in_float32(
    run: Run, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU multiplies in bfloat16 ten times slower."""
    model = language_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words: tuple[object, ...] = ("offer", tmp_path / "model", "--out", tmp_path / "offer")
    assert run(*words, "--keep", 2, "--device", "cpu")[0] == 0
    path, seen = tmp_path / "private.jsonl", set()
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts(40)))

    def losses(model: Any, texts: Any, *_: Any) -> list[float]:
        seen.add(next(model.parameters()).dtype)
        return [float(len(text)) for text in texts]

    monkeypatch.setattr("offsite.audit.delta.losses", losses)
    words = ("audit", "delta", tmp_path / "offer", "--data", path, "--model", tmp_path / "model")
    words += ("--record", tmp_path / "offer.record.json", "--canaries", 3, "--candidates", 9)
    status, _, err = run(*words, "--steps", 1, "--max-length", 32, "--device", "cpu")
    assert status == 0, err
    assert seen == {torch.float32}


def test_losses_come_in_the_order_of_the_texts(tokenizer: Any) -> None:
    model = language_model("llama").eval()
    given = ["the cat sat on the mat " * n for n in (3, 1, 2, 5, 1, 4)]
    together = losses(model, given, tokenizer, 64, CPU)
    alone = [losses(model, [text], tokenizer, 64, CPU)[0] for text in given]
    assert together == pytest.approx(alone, rel=1e-5)
