"""The loss that never holds all logits is the plain one: values, gradients, all kinds of head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from offsite.deltas import LoRA, Prompt
from offsite.model.replay import IGNORE, forward
from offsite.tasks.text import cross_entropy
from offsite.tasks.text.cross_entropy import (
    FrozenHead,
    head_losses,
    losses_at,
    summed_loss,
    token_losses,
    widened,
    with_targets,
)
from offsite.training.compiling import compiled
from tests.support.models import LANGUAGE, VOCAB, language_model

CAPPED = ("gemma2",)  # their logits are not what the head gave


def batch_of(rows: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :5] = labels[1, 9:] = IGNORE
    return {"input_ids": ids, "labels": labels}


def plain(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits, labels = forward(model, batch).logits[:, :-1], batch["labels"][:, 1:]
    chosen = labels != IGNORE
    return nn.functional.cross_entropy(logits[chosen].float(), labels[chosen], reduction="none")


def gradients(model: nn.Module, losses: torch.Tensor) -> list[torch.Tensor]:
    tuned = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(0.5, 2, len(losses))  # tokens need not count alike
    return list(torch.autograd.grad((losses * weights).sum(), tuned, allow_unused=True))


@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("trained", ["lora", "everything"])
def test_losses_and_gradients_are_the_plain_ones(
    family: str, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 7 * VOCAB)
    model: Any = language_model(family).requires_grad_(trained == "everything")
    runner = LoRA(rank=2).attach(model, [0, 5]).model if trained == "lora" else model
    batch = batch_of()
    expected, found = plain(runner, batch), token_losses(runner, batch)
    torch.testing.assert_close(found, expected)
    for one, two in zip(gradients(runner, found), gradients(runner, expected), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)
    assert (model.get_output_embeddings() in cross_entropy.CHANGED) == (family in CAPPED)
    assert "forward" not in vars(model.get_output_embeddings())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_sum_over_all_positions_counts_the_targets_only(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = language_model(family), batch_of()
    expected = token_losses(model, batch).sum()
    torch.testing.assert_close(summed_loss(model, batch), expected)
    labels = batch["labels"][:, 1:].flatten()
    losses = losses_at(model, batch, torch.arange(len(labels)))  # as on a GPU
    torch.testing.assert_close(losses[labels != IGNORE].sum(), expected)


def test_a_widened_head_gives_the_same_losses_and_gradients() -> None:
    torch.manual_seed(0)
    states, head = torch.randn(9, 16, requires_grad=True), nn.Linear(16, 50).requires_grad_(False)
    found = []
    losses_of: Any = FrozenHead.apply
    for weight, bias in ((head.weight, head.bias), widened(head.weight, head.bias)):
        losses = losses_of(states, weight, bias, 4, with_targets(torch.arange(9), 50))
        found.append((losses, *torch.autograd.grad(losses.sum(), states)))
    assert len(weight) == 64 and bias is not None and len(bias) == 64
    torch.testing.assert_close(found[0], found[1])


def test_compiled_losses_and_gradients_are_the_plain_ones() -> None:
    torch.manual_seed(0)
    states, head = torch.randn(9, 16, requires_grad=True), nn.Linear(16, 50).requires_grad_(False)

    def found() -> list[torch.Tensor]:
        losses = head_losses(states, head, torch.arange(9), chunk=200)  # 4, 4 and 1 rows
        return [losses, *torch.autograd.grad(losses.sum(), states)]

    plain = found()
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    with compiled(language_model("llama"), backend="aot_eager"):
        fused = found()
    assert counters["stats"]["unique_graphs"] > before
    torch.testing.assert_close(fused, plain)


def test_a_prompt_is_cut_off_before_the_head() -> None:
    runner: Any = Prompt(length=4).attach(language_model("llama"), []).model
    batch = batch_of()
    torch.testing.assert_close(token_losses(runner, batch), plain(runner, batch))


def test_the_logits_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    linear = nn.functional.linear

    def counted(*arguments: Any) -> torch.Tensor:
        made.append((output := linear(*arguments)).numel())
        return output

    monkeypatch.setattr(nn.functional, "linear", counted)
    states = torch.randn(40, 16, requires_grad=True)
    head = nn.Linear(16, 1000).requires_grad_(False)
    torch.autograd.backward(head_losses(states, head, torch.arange(40), chunk=5000).sum())
    assert max(made) <= 5000 and sum(made) == 40 * 1000


def test_autocast_computes_the_logits_in_its_dtype() -> None:
    torch.manual_seed(0)
    states, head = torch.randn(9, 16), nn.Linear(16, 50).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head_losses(states, head, torch.arange(9))
        logits = head(states)
    expected = nn.functional.cross_entropy(logits.float(), torch.arange(9), reduction="none")
    assert logits.dtype == torch.bfloat16 and losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


def test_a_batch_without_targets_has_no_losses() -> None:
    batch = batch_of()
    batch["labels"] = torch.full_like(batch["labels"], IGNORE)
    model = language_model("gpt2").requires_grad_(True)
    losses = token_losses(model, batch)
    assert losses.shape == (0,)
    torch.autograd.backward(losses.sum())  # a batch of nothing but prompts is no reason to stop
