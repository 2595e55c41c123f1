"""Padding is no token: a row counts the same alone and beside a longer one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from offsite.compress.crash import pooled_states
from offsite.compress.distill import Distill
from offsite.compress.gradot.kfac import measure
from offsite.compress.importance import angle, influence
from offsite.model.replay import observe, relative_error
from offsite.model.split import whole_middle
from tests.support.context import rows, world

SHORT, LONG = rows(1, 7), rows(2, 20)[1:]


def batches(context: Any, given: Any) -> dict[str, Any]:
    batch: dict[str, Any] = context.task.collate(given)
    return batch


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_signals_are_means_over_tokens(family: str) -> None:
    context = world(family)
    calls = {
        name: observe(context.model, batches(context, given))[2]
        for name, given in (("short", SHORT), ("long", LONG), ("both", [*SHORT, *LONG]))
    }
    for signal in (influence, lambda call: angle(call, call)):
        mean = (7 * signal(calls["short"]) + 20 * signal(calls["long"])) / 27
        assert signal(calls["both"]) == pytest.approx(mean, rel=1e-4)
    other = calls["both"].output.clone()
    other[0, 7:] = 1e6
    assert relative_error(other, calls["both"]) == 0


def test_pooled_states_and_gradients_know_no_padding() -> None:
    context = world("llama")
    data: Any = [*SHORT, *LONG] * 4
    both = replace(context, data=data)
    alone = {n: observe(context.model, batches(context, given))[2].output.double().mean(1)
             for n, given in (("short", SHORT), ("long", LONG))}  # fmt: skip
    for state in pooled_states(both, [2])[2]:
        assert min((state - mean).abs().max() for mean in alone.values()) < 1e-5
    task = context.task

    class Padded(type(task)):  # type: ignore[misc]
        def collate(self, given: Any) -> Any:
            batch = super().collate(given)
            wide = {"input_ids": 0, "labels": -100}
            return {k: torch.nn.functional.pad(v, (0, 9), value=wide[k]) for k, v in batch.items()}

    plain = measure(replace(context, data=rows()), [1], 2)
    padded = measure(replace(context, data=rows(), task=Padded(max_length=64)), [1], 2)
    for key, found in plain.items():
        for name in ("a", "g", "gradient"):
            left, right = getattr(found, name), getattr(padded[key], name)
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_student_that_is_its_teacher_learns_nothing_from_it(family: str) -> None:
    context = world(family)  # these families have dropout in training mode
    middle = whole_middle(context.model, context.split)
    step = Distill(steps=2, lr=1e-2, lm_weight=0, batch_size=2)
    for old, new in zip(middle.blocks, step(middle, context).blocks, strict=True):
        for name, tensor in new.state_dict().items():
            assert torch.equal(tensor, old.state_dict()[name]), name
