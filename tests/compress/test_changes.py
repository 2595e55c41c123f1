"""Low-rank changes that a model and its emulator carry at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from offsite.compress import Align, Drop, Narrow
from offsite.compress.changes import SCALE, LowRank, carried, tuned_changes
from offsite.compress.step import compress
from offsite.model.blocks import get_blocks
from offsite.model.split import emulator_layout, join
from tests.support.context import logits, world


def random_change(context: Any) -> Any:
    change = LowRank(context.model, 0).change
    generator = torch.Generator().manual_seed(1)
    return {
        name: (a.detach(), 0.02 * torch.randn(b.shape, generator=generator))
        for name, (a, b) in change.items()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_carrying_a_change_is_adding_its_product_to_the_weights(family: str) -> None:
    context, merged = world(family), world(family)
    change, total = random_change(context), range(6)
    before = logits(context.model)
    with torch.no_grad():
        for position, block in enumerate(get_blocks(merged.model)):
            for name, layer in block.named_modules():
                if factors := change.get(f"{position}.{name}"):
                    product: Any = 0.5 * SCALE * factors[1] @ factors[0]
                    weight: Any = layer.weight
                    weight += product.T if isinstance(layer, Conv1D) else product
    with carried(context.model, change, total, scale=0.5):
        assert torch.allclose(logits(context.model), logits(merged.model), atol=1e-5)
    assert torch.equal(logits(context.model), before)


def test_a_narrow_block_carries_what_it_still_has() -> None:
    """Zeros in place of the channels that went give the narrow blocks' output."""
    context = world()
    change = random_change(context)
    middle = compress([Narrow(feed_forward=0.5)], context)
    emulator = join(context.model, context.split, middle)[0]
    order = emulator_layout(context.split, middle.positions)[0]
    wide = world()
    with torch.no_grad():
        for name, left in middle.kept.items():
            position, _, layer = name.partition(".")
            weight: Any = get_blocks(wide.model)[int(position)].get_submodule(layer).weight
            axis, indices = (0, left.rows) if left.rows is not None else (1, left.columns)
            gone = [i for i in range(weight.shape[axis]) if i not in (indices or ())]
            weight.index_fill_(axis, torch.tensor(gone), 0.0)
            a, b = change[name]
            change[name] = (
                a if axis == 0 else a.index_fill(1, torch.tensor(gone), 0.0),
                b if axis == 1 else b.index_fill(0, torch.tensor(gone), 0.0),
            )
    with carried(emulator, change, order, middle.kept), carried(wide.model, change, range(6)):
        assert torch.allclose(logits(emulator), logits(wide.model), atol=1e-5)


def test_changes_are_tuned_apart_and_leave_the_model_as_it_was() -> None:
    context = world()
    before = {name: p.clone() for name, p in context.model.named_parameters()}
    first, second = tuned_changes(context, context.data, 2)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name][1], second[name][1]) for name in first)
    assert all(torch.equal(p, before[name]) for name, p in context.model.named_parameters())


def test_alignment_at_changes_is_another_alignment() -> None:
    context = world()
    dropped = compress([Drop(keep=2)], context)
    plain, changed, again = (
        Align(steps=4, lr=3e-3, changes=count)(dropped, context) for count in (0, 1, 1)
    )
    weights = [
        [p for block in made.blocks for p in block.parameters()] for made in (plain, changed, again)
    ]
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
