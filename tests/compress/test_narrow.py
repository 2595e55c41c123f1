"""Narrow blocks: removing a channel or a group is zeroing it, and the most used ones stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offsite.compress.gradot.step import GradOT
from offsite.compress.linears import linears, matrix
from offsite.compress.narrow import Narrow, measure, strongest
from offsite.compress.step import compress
from offsite.errors import OffsiteError
from offsite.model.blocks import block_path, get_blocks
from offsite.model.split import Kept, join
from tests.support.context import logits, world

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


def zeroed(context: Any, kept: dict[str, Kept]) -> torch.Tensor:
    """Logits of the full model with everything set to zero that narrowing removed."""
    blocks = get_blocks(context.model)
    for name, left in kept.items():
        position, _, layer = name.partition(".")
        weight = matrix(blocks[int(position)].get_submodule(layer))
        full = torch.zeros_like(weight)
        rows = slice(None) if left.rows is None else list(left.rows)
        columns = slice(None) if left.columns is None else list(left.columns)
        full[rows, columns] = weight[rows, columns]
        weight.copy_(full)
        bias = getattr(blocks[int(position)].get_submodule(layer), "bias", None)
        if bias is not None and left.rows is not None:
            bias.data[[i for i in range(len(bias)) if i not in left.rows]] = 0
    return logits(context.model)


@pytest.mark.parametrize(
    ("family", "step"),
    [
        ("llama", Narrow(0.5, 0.5)), ("qwen2", Narrow(0.5, 0.5)), ("gemma3", Narrow(1.0, 0.5)),
        ("gpt2", Narrow(0.4)), ("opt", Narrow(0.4)), ("bloom", Narrow(0.4)),
    ],
)  # fmt: skip
def test_removing_is_zeroing(family: str, step: Narrow) -> None:
    context = world(family, **(GROUPED if step.groups < 1 else {}))
    before = {name: p.clone() for name, p in context.model.named_parameters()}
    middle = compress([step], context)
    narrow = join(context.model, context.split, middle)[0].eval()
    assert all(torch.equal(p, before[name]) for name, p in context.model.named_parameters())
    small = sum(p.numel() for p in narrow.parameters())
    assert small < sum(p.numel() for p in context.model.parameters())
    found = logits(narrow)
    for name, left in middle.kept.items():
        position, _, layer = name.partition(".")
        block = middle.blocks[middle.positions.index(int(position))]
        full = before[f"{block_path(context.model)}.{position}.{layer}.weight"]
        full = full.T if family == "gpt2" else full
        rows = slice(None) if left.rows is None else list(left.rows)
        columns = slice(None) if left.columns is None else list(left.columns)
        assert torch.equal(matrix(block.get_submodule(layer)), full[rows, columns])
    assert torch.allclose(found, zeroed(context, dict(middle.kept)), atol=1e-5)


def test_the_most_used_channels_stay() -> None:
    context = world("llama")
    middle = compress([Narrow(0.5)], context)
    position = middle.positions[0]
    layers = dict(linears(get_blocks(context.model)[position]))
    down = layers["mlp.down_proj"]
    power = measure(context, {position: layers})[position]["mlp.down_proj"]
    assert isinstance(down.weight, torch.Tensor)
    used = [(power[i].sqrt() * down.weight[:, i].norm()).item() for i in range(len(power))]
    best = sorted(sorted(range(len(used)), key=lambda i: -used[i])[: len(used) // 2])
    assert list(middle.kept[f"{position}.mlp.down_proj"].columns or ()) == best


def test_a_share_keeps_at_least_one() -> None:
    values = torch.tensor([3.0, 1.0, 2.0])
    assert strongest(values, 0.01).tolist() == [0]
    assert strongest(values, 0.67).tolist() == [0, 2]


def test_what_cannot_be_narrowed_is_refused() -> None:
    with pytest.raises(OffsiteError, match="set groups to 1"):
        compress([Narrow(groups=0.5)], world("gpt2"))
    with pytest.raises(OffsiteError, match="put 'narrow' before it"):
        compress([GradOT(attention=1.0, batches=1), Narrow()], world("llama"))
    with pytest.raises(OffsiteError, match="more than 0 and at most 1"):
        Narrow(feed_forward=0.0)
