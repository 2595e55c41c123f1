"""The divergence that never holds all logits is the plain one: values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from offsite.model.replay import IGNORE, forward, real_tokens
from offsite.tasks.text import cross_entropy
from offsite.tasks.text.divergence import Predictions, divergence
from tests.support.models import (
    LANGUAGE,
    VOCAB,
    classifier,
    inputs_for,
    language_model,
    plain_divergence,
)


def of(model: nn.Module, batch: dict[str, torch.Tensor], real: torch.Tensor | None) -> Predictions:
    found = Predictions.of(model, batch, real)
    assert found is not None
    return found


def test_it_is_in_nats_per_token() -> None:
    target = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    found = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    expected = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    value = divergence(Predictions(found, None), lambda part: target[part])
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("trained", ["blocks", "everything"])
def test_values_and_gradients_are_the_plain_ones(
    family: str, padded: bool, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 7 * VOCAB)  # the last chunk is smaller
    ids = torch.randint(0, VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    if padded:
        labels[0, 5:] = labels[2, 9:] = IGNORE
    batch = {"input_ids": ids, "labels": labels}
    teacher, student = language_model(family), language_model(family, seed=1)
    student.requires_grad_(trained == "everything")
    tuned = student.get_parameter(
        next(
            n
            for n, p in student.named_parameters()
            if p.dim() == 2 and "embed" not in n and "wte" not in n
        )
    )
    tuned.requires_grad_(True)
    real = real_tokens(batch)
    assert (real is None) == (not padded)
    with torch.no_grad():
        wanted = of(teacher, batch, real)
    found = divergence(of(student, batch, real), wanted.logits)
    expected = plain_divergence(
        forward(student, batch).logits, forward(teacher, batch).logits.detach(), real
    )
    torch.testing.assert_close(found, expected)
    one, two = (torch.autograd.grad(3 * value, tuned)[0] for value in (found, expected))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_pictures_have_one_prediction_each() -> None:
    teacher, student = classifier("vit"), classifier("vit", seed=1)
    batch = inputs_for(teacher)
    found = divergence(of(student, batch, None), of(teacher, batch, None).logits)
    expected = plain_divergence(student(**batch).logits, teacher(**batch).logits, None)
    torch.testing.assert_close(found, expected)


def test_all_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that a head gives has the rows of one chunk."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 7 * VOCAB)
    sizes: list[int] = []
    teacher, student = language_model("llama"), language_model("llama", seed=1)
    student.requires_grad_(False)
    linear = nn.functional.linear

    def noted(states: Any, weight: Any, bias: Any = None) -> torch.Tensor:
        out = linear(states, weight, bias)
        sizes.extend([out.numel()] if out.shape[-1] == VOCAB else [])
        return out

    monkeypatch.setattr(nn.functional, "linear", noted)
    batch = inputs_for(teacher)
    divergence(of(student, batch, None), of(teacher, batch, None).logits)
    assert sizes and max(sizes) == 7 * VOCAB
