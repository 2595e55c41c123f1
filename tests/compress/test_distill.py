"""Distillation shares work between the two parts of its loss, and the loss is what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offsite.compress.distill import _Pair, block_after, segment_error
from offsite.compress.drop import Drop
from offsite.compress.step import Context, compress
from offsite.compress.student import copy_middle
from offsite.model.replay import observe
from offsite.model.split import Middle, Split, join
from offsite.tasks.text.causal import CausalText
from tests.support.models import language_model

TASK = CausalText(max_length=8)


def pair_of(family: str, split: Split, keep: int = 2) -> tuple[_Pair, Context, Middle, Any]:
    context = Context(language_model(family).requires_grad_(False), split, TASK)
    student = copy_middle(compress([Drop(keep=keep)], context))
    for block in student.blocks:
        for parameter in block.parameters():
            parameter.data.add_(0.01)
            parameter.requires_grad_(True)
    emulator, _ = join(context.model, split, student)
    return _Pair(context, student, emulator, 1.0, 30.0), context, student, emulator


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma3"])
@pytest.mark.parametrize("adapter", [(0, 5), (0,), (4, 5), (0, 2, 5)])
def test_the_loss_is_the_sum_of_both_parts(family: str, adapter: tuple[int, ...]) -> None:
    pair, context, student, emulator = pair_of(family, Split(adapter, 6))
    ids = torch.randint(5, 300, (2, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.clone()}
    trained = [p for p in pair.parameters() if p.requires_grad]
    plain = TASK.loss(emulator, batch) + 30 * segment_error(
        context, student, observe(context.model, batch)
    )
    shared = pair(batch, None)
    torch.testing.assert_close(shared, plain)
    for one, two in zip(
        torch.autograd.grad(shared, trained), torch.autograd.grad(plain, trained), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_the_teacher_stops_after_its_middle() -> None:
    _, context, _, _ = pair_of("llama", Split((0, 5), 6))
    ran: list[str] = []
    model: Any = context.model
    model.model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    ids = torch.randint(5, 300, (2, 8))
    observe(model, {"input_ids": ids}, until=4)
    assert not ran and len(observe(model, {"input_ids": ids})) == 6 and ran


def test_where_the_middle_ends_in_the_emulator() -> None:
    student = Middle((torch.nn.Identity(), torch.nn.Identity()), (1, 4))
    assert block_after(student, Split((0, 5), 6)) == 3
    assert block_after(student, Split((0,), 6)) is None
    assert block_after(student, Split((0, 3, 5), 6)) is None
