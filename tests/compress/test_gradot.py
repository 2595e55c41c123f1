"""GradOT against what it is by definition."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.compress.gradot import kfac
from offsite.compress.gradot.kfac import Statistics, collect, measure
from offsite.compress.gradot.step import (
    GradOT,
    channel_terms,
    combine,
    fewer_channels,
    value_terms,
)
from offsite.compress.linears import linears, matrix
from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.model.split import whole_middle
from tests.support.context import logits, world


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_statistics_are_those_of_the_definition(family: str) -> None:
    context = world(family)
    ((positions, found),) = collect(context, [2, 3], 2)
    assert positions == [2, 3]
    for parameter in context.model.parameters():
        assert parameter.grad is None
    model = context.model.requires_grad_(True)
    block, name = get_blocks(model)[3], next(linears(get_blocks(model)[3]))[0]
    layer: Any = block.get_submodule(name)
    inputs: list[Any] = []
    outputs: list[Any] = []

    def remember(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        inputs.append(args[0])
        outputs.append(output)

    task: Any = context.task
    handle = layer.register_forward_hook(remember)
    for batch in context.batches(2, 4):
        task.loss(model, batch).backward()
    handle.remove()
    a, g = torch.zeros_like(found[3, name].a), torch.zeros_like(found[3, name].g)
    for x, y in zip(inputs, outputs, strict=True):
        for row in range(4):
            for token in range(12):
                a += torch.outer(x[row, token], x[row, token]).detach()
                g += torch.outer(y.grad[row, token], y.grad[row, token])
    weight = layer.weight.grad.T if isinstance(layer, Conv1D) else layer.weight.grad
    for mine, theirs in ((found[3, name].a, a), (found[3, name].g, g),
                         (found[3, name].gradient, weight)):  # fmt: skip
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


def test_statistics_are_freed_before_the_next_blocks_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of one block of a 7B model take 3 GB."""
    seen: list[weakref.ref[Statistics]] = []

    def measured(*arguments: Any) -> Any:
        assert not any(one() for one in seen)
        found = measure(*arguments)
        seen.extend(map(weakref.ref, found.values()))
        return found

    monkeypatch.setattr(kfac, "MEMORY", 1)
    monkeypatch.setattr(kfac, "measure", measured)
    context = world("llama")
    GradOT(batches=1)(whole_middle(context.model, context.split), context)
    assert len(seen) == 7 * len(context.split.middle)


def test_gradot_scores_are_those_of_each_change() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 5), torch.randn(6, 5)
    a, g = torch.randn(9, 5), torch.randn(9, 6)
    known = Statistics(a.T @ a, g.T @ g, gradient)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    curvature, slope = value_terms(u, s, v, known)
    for i in range(5):
        d = -s[i] * torch.outer(u[:, i], v[i])
        check(d, known, curvature[i], slope[i])
    for falling in (True, False):
        curvature, slope = channel_terms(weight, known, falling=falling)
        for i in range(5 if falling else 6):
            d = torch.zeros_like(weight)
            index = (slice(None), i) if falling else i
            d[index] = -weight[index]
            check(d, known, curvature[i], slope[i])
    score = combine(torch.tensor([1.0, 3.0]), torch.tensor([1.0, -1.0]), weight=2.0)
    assert score.tolist() == [0.25 - 1, 0.75 + 1]


def check(d: torch.Tensor, known: Statistics, curvature: torch.Tensor, slope: torch.Tensor) -> None:
    """Compare with the Kronecker product written out."""
    h = torch.kron(known.g, known.a)
    assert (h @ d.flatten()).abs().sum() == pytest.approx(curvature.item(), rel=1e-4)
    assert (known.gradient * d).sum() == pytest.approx(slope.item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bloom"])
def test_channels_without_use_are_the_first_to_go(family: str) -> None:
    context = world(family)
    block = get_blocks(context.model)[2]
    layers = {n: m for n, m in linears(block) if "attn" not in n and "attention" not in n}
    *rising, falling = layers
    width = matrix(layers[falling]).shape[1]
    silent = torch.arange(0, width, 2)
    with torch.no_grad():
        matrix(layers[falling])[:, silent] = 0
        for name in rising:
            matrix(layers[name])[silent] = 0
    ((_, found),) = collect(context, [2], 20)
    new, _ = fewer_channels(layers, {n: found[2, n] for n in layers}, 0.5, 0.0)
    before = logits(context.model)
    for name, layer in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(parent), leaf, layer)
    assert matrix(new[falling]).shape[1] == width // 2
    assert torch.allclose(logits(context.model), before, atol=1e-5)


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    layers = {str(i): nn.Linear(4, 8) for i in range(4)} | {"down": nn.Linear(8, 4)}
    with pytest.raises(OffsiteError, match="feed_forward to 1"):
        fewer_channels(layers, {}, 0.5, 1.0)
