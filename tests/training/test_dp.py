"""Differential privacy: the accountants agree, clipping and noise act, and the trap goes blind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offsite.compress import Drop
from offsite.deltas import parse_method
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.tasks import load_task
from offsite.tasks.data import rows_of
from offsite.training import dp, secure_noise
from offsite.training.dp import PrivacyBudget, Schedule, epsilon, schedule
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support.models import classifier
from tests.support.pictures import image_processor, write_arrays
from tests.support.trap import WATCHED, area_under_curve, make_trap, private_lines

pytest.importorskip("opacus")
OPTIONS = TrainOptions(steps=40, batch_size=8, lr=3e-3)


def by_hand(multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon by Renyi divergence at integer orders (Mironov et al., arXiv 1908.10530, eq. 3)."""

    def divergence(order: int) -> float:
        logs = [
            math.log(math.comb(order, k))
            + (order - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k * k - k) / (2 * multiplier**2)
            for k in range(order + 1)
        ]
        return float(torch.tensor(logs, dtype=torch.float64).logsumexp(0)) / (order - 1)

    return min(
        steps * divergence(a) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for a in range(2, 64)
    )


def test_torchruns_processes_are_refused_and_a_schedulers_variable_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = TrainOptions(steps=5, batch_size=8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert schedule(PrivacyBudget(8.0), options, 2000).steps == 5
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(OffsiteError, match="leave out torchrun"):
        schedule(PrivacyBudget(8.0), options, 2000)


@pytest.mark.parametrize("target", [1.0, 8.0])
def test_two_accountants_and_a_slow_reference_agree_on_epsilon(target: float) -> None:
    plan = schedule(PrivacyBudget(target), TrainOptions(steps=500, batch_size=8), 2000)
    spent = (plan.multiplier, plan.rate, plan.steps, 1e-5)
    assert 0.95 * target <= plan.epsilon <= target
    assert epsilon(*spent, "prv") == plan.epsilon
    assert plan.epsilon < epsilon(*spent, "rdp") < 1.8 * target
    slow = by_hand(*spent)  # integer orders alone: a little larger
    assert 0.999 * epsilon(*spent, "rdp") <= slow < 1.2 * epsilon(*spent, "rdp")
    assert epsilon(2 * plan.multiplier, *spent[1:]) < 0.6 * target  # more noise, less is spent


def test_clipping_bounds_what_one_example_adds() -> None:
    from offsite.training.per_example import NoisyOptimizer, per_example

    torch.manual_seed(0)
    layer, inputs = nn.Linear(6, 5), torch.randn(4, 6) * torch.tensor([[0.01], [1], [9], [1000]])
    inner = torch.optim.SGD(layer.parameters(), lr=1.0)
    with per_example(layer):
        optimizer = NoisyOptimizer(
            inner, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=4
        )
        layer(inputs).square().sum().backward()
        optimizer.add_examples()
        found = [p.summed_grad for p in layer.parameters()]  # type: ignore[attr-defined]
    wanted = [torch.zeros_like(p) for p in layer.parameters()]
    for row in inputs:
        layer.zero_grad()
        layer(row).square().sum().backward()
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        norm = float(sum(g.square().sum() for g in gradients)) ** 0.5
        for total, gradient in zip(wanted, gradients, strict=True):
            total += gradient / max(1.0, norm)
    for mine, reference in zip(found, wanted, strict=True):
        assert torch.allclose(mine, reference, atol=1e-5)
    assert float(sum(g.square().sum() for g in found)) ** 0.5 <= 4  # of gradients of about 10^6
    assert all(not hasattr(p, "grad_sample") for p in layer.parameters())


def test_noise_has_the_scale_that_was_accounted_for() -> None:
    from offsite.training.per_example import NoisyOptimizer, per_example

    layer = nn.Linear(200, 100, bias=False)
    before = layer.weight.detach().clone()
    inner = torch.optim.SGD(layer.parameters(), lr=1.0)
    with per_example(layer):
        NoisyOptimizer(
            inner, noise_multiplier=3.0, max_grad_norm=0.5, expected_batch_size=4
        ).noisy_step()  # no example was drawn: noise alone
    moved = (layer.weight.detach() - before) * 4
    assert moved.std() == pytest.approx(1.5, rel=0.03) and abs(moved.mean()) < 0.05


def test_noise_from_the_system_is_normal_and_never_the_same() -> None:
    draws = secure_noise.normal((200, 100))
    assert abs(draws.mean()) < 0.03 and draws.std() == pytest.approx(1, rel=0.03)
    assert draws.pow(4).mean() == pytest.approx(3, rel=0.1)
    assert not torch.equal(draws, secure_noise.normal((200, 100)))
    values = secure_noise.uniform(10_000)
    assert values.min() > 0 and values.max() < 1 and (values < 0.1).double().mean() < 0.12


def test_every_line_is_one_example(tmp_path: Path) -> None:
    trap = make_trap()
    private_lines(path := tmp_path / "private.jsonl", count=30)
    task: Any = load_task("text", 32)
    rows = rows_of(replace(task, packed=False), path, trap.tokenizer, trap.offer.model, train=True)
    assert len(rows) == 30 and all(len(row["input_ids"]) == 12 for row in rows)
    assert len(rows_of(task, path, trap.tokenizer, trap.offer.model, train=True)) < 30


def test_the_trap_reads_words_without_and_guesses_with_differential_privacy(
    tmp_path: Path,
) -> None:
    trap = make_trap()
    secret = private_lines(path := tmp_path / "private.jsonl")
    areas, found = [], []
    for budget in (None, PrivacyBudget(3.0, 1e-3)):
        tuned = run_tune(
            trap.offer, str(path), parse_method({"kind": "lora", "rank": 8}), options=OPTIONS,
            task=load_task("text", 32), device="cpu", budget=budget,
        )  # fmt: skip
        scores = dict(zip(WATCHED, trap.scores(tuned.delta.values()), strict=True))
        found.append({word for word, score in scores.items() if score > 0})
        areas.append(
            area_under_curve(
                [scores[word] for word in secret],
                [score for word, score in scores.items() if word not in secret],
            )
        )
    assert found[0] == secret and areas[0] == 1.0  # every word, no false alarm
    assert found[1] == set(WATCHED) and areas[1] < 0.85
    tuned.delta.save(tmp_path / "delta")
    spent = Delta.load(tmp_path / "delta").manifest.dp
    assert spent is not None and spent.epsilon <= 3 and spent.delta == 1e-3


@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "bottleneck"])
def test_gradients_of_single_examples_are_right_for(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp, "schedule", lambda *_: Schedule(2, 0.1, 1.0, 3.0))
    trap = make_trap()
    private_lines(path := tmp_path / "private.jsonl", count=40)
    options = TrainOptions(steps=2, batch_size=4)
    tuned = run_tune(
        trap.offer, str(path), parse_method({"kind": method}), options=options,
        task=load_task("text", 32), device="cpu", budget=PrivacyBudget(5.0, 1e-3),
    )  # fmt: skip
    assert tuned.delta.manifest.dp is not None and tuned.history.steps == 2


def refused(offer: Offer, data: str, words: str, **changes: Any) -> None:
    options: dict[str, Any] = {"budget": PrivacyBudget(3.0, 1e-3), "options": OPTIONS}
    with pytest.raises(OffsiteError, match=words):
        run_tune(offer, data, task=load_task("text", 32), device="cpu", **{**options, **changes})


def test_what_a_budget_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = make_trap().offer
    private_lines(path := tmp_path / "private.jsonl", count=40)
    (tmp_path / "one.txt").write_text("the patient has met the patient . " * 50)
    refused(offer, str(tmp_path / "one.txt"), "batch of 8 holds all 1 examples")
    refused(offer, str(path), "too large for 40 examples", budget=PrivacyBudget(3.0, 0.1))
    refused(offer, str(path), "cannot be resumed", resume=True)
    refused(offer, str(path), "--patience and", options=TrainOptions(patience=2))
    monkeypatch.setattr(dp, "schedule", lambda *_: Schedule(2, 0.1, 1.0, 3.0))
    for kind in ("ia3", "prefix"):
        refused(offer, str(path), "of single examples", method=parse_method({"kind": kind}))
    with pytest.raises(OffsiteError, match="epsilon of 0"):
        PrivacyBudget(0)


def test_pictures_are_seen_without_augmentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It depends on the batch, and one example must not change what another adds."""
    monkeypatch.setattr(dp, "schedule", lambda *_: Schedule(2, 0.3, 1.0, 2.9))
    task = load_task("image-classification")
    model, processor = classifier("vit"), image_processor()
    offer, _ = make_offer(
        model, adapter=ends(1, 1), recipe=[Drop(keep=2)], task=task, processor=processor
    )
    options = TrainOptions(steps=2, batch_size=4)
    method = parse_method({"kind": "head"})
    found = run_tune(
        offer, write_arrays(tmp_path), method, options=options, task=task, budget=PrivacyBudget(3)
    )
    assert found.delta.manifest.dp is not None


def test_the_command_says_what_it_spent(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp, "schedule", lambda *_: Schedule(2, 0.1, 1.0, 2.9))
    make_trap().offer.save(tmp_path / "offer")
    private_lines(path := tmp_path / "private.jsonl", count=40)
    words: tuple[object, ...] = (
        "tune",
        tmp_path / "offer",
        "--data",
        path,
        "--delta",
        "lora:rank=2",
        "--steps",
        2,
    )
    words += ("--batch-size", 4, "--max-length", 32, "--device", "cpu")
    words += ("--dp-epsilon", 3, "--dp-delta", 1e-3, "--out", tmp_path / "delta")
    status, out, err = run(*words, "--json")
    assert status == 0, err
    assert json.loads(out)["dp"]["epsilon"] <= 3
