"""Greedy choice of blocks against a slow reference, and where it differs from a ranking."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offsite.compress import Drop
from offsite.compress.greedy import BATCHES, ROWS
from offsite.compress.step import Context, compress
from offsite.model.blocks import get_blocks
from tests.support.context import world


def divergence(context: Context, gone: tuple[int, ...]) -> float:
    """What removing blocks costs, by hooks that hand a block's input on."""
    blocks, total = get_blocks(context.model), 0.0

    def skip(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    for batch in context.batches(BATCHES, ROWS):
        wanted = context.model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
        hooks = [blocks[p].register_forward_hook(skip, with_kwargs=True) for p in gone]
        found = context.model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
        for handle in hooks:
            handle.remove()
        total += (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    return total


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_each_removal_is_the_one_that_costs_least(family: str) -> None:
    context = world(family)
    gone: tuple[int, ...] = ()
    with torch.no_grad():
        for _ in range(2):
            rest = [p for p in context.split.middle if p not in gone]
            gone = (*gone, min(rest, key=lambda p: divergence(context, (*gone, p))))
    kept = compress([Drop(keep=2, by="greedy")], context).positions
    assert set(context.split.middle) - set(kept) == set(gone)


def test_two_blocks_that_stand_in_for_one_another_are_not_both_removed() -> None:
    """A block whose twin undoes its absence is missed only once the twin has gone."""
    context = world("llama")
    blocks = get_blocks(context.model)
    first, second, *others = context.split.middle
    with torch.no_grad():
        for block in blocks:
            for name, parameter in block.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(0.02)  # a block that changes little
        for position in (first, second):  # each brings the states to the same large vector
            state = dict(blocks[position].named_parameters())
            state["mlp.down_proj.weight"].mul_(400)
        blocks[second].load_state_dict(blocks[first].state_dict())
    kept = compress([Drop(keep=len(others), by="greedy")], context).positions
    assert first in kept or second in kept


def test_a_model_without_logits_is_judged_by_its_last_states() -> None:
    context = world("llama")
    bare: Any = context.model.model
    asked = Context(bare, context.split, context.task, context.data)
    assert len(compress([Drop(keep=2, by="greedy")], asked).positions) == 2
