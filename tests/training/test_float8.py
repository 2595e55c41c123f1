"""Products of frozen blocks in float8: how far they are from exact ones, and what stays exact."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from offsite.deltas import LoRA
from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.training.float8 import FLOAT8, Float8Linear, in_float8, product, scaled
from offsite.training.options import TrainOptions
from offsite.training.precision import choose_precision, in_precision, weight_dtype
from offsite.training.train import train
from tests.support.models import language_model
from tests.training.test_speed import TASK, rows

CPU = torch.device("cpu")


def test_a_row_is_scaled_by_its_own_largest_value() -> None:
    rows = torch.tensor([[448.0, -1.0, 0.0], [2.0**-90, 2.0**-91, 0.0], [0.0, 0.0, 0.0]])
    codes, scales = scaled(rows)
    assert codes.dtype == FLOAT8
    torch.testing.assert_close(codes.float() * scales, rows, rtol=2**-20, atol=0)


def test_a_product_is_that_of_the_rounded_rows() -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(5, 64), torch.randn(32, 64)
    codes, scales = scaled(weight)
    own, own_scales = scaled(states)
    exact = (own.double() * own_scales) @ (codes.double() * scales).t()
    found = product(states, codes, scales.t().contiguous())
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradient_are_within_a_few_percent(bias: bool) -> None:
    torch.manual_seed(0)
    exact = nn.Linear(64, 96, bias=bias).requires_grad_(False)
    rounded = Float8Linear(exact.weight, exact.bias)
    states, slopes = torch.randn(2, 7, 64, requires_grad=True), torch.randn(2, 7, 96)
    pairs = []
    for layer in (exact, rounded):
        output = layer(states)
        (slope,) = torch.autograd.grad(output, states, slopes)
        pairs.append((output, slope))
    for one, two in zip(*pairs, strict=True):
        assert 0.001 < (one - two).norm() / one.norm() < 0.05


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_frozen_blocks_are_cast_and_they_come_back(family: str) -> None:
    model = language_model(family)
    runner: Any = LoRA(rank=2).attach(model, [0, 5]).model
    before = list(runner.modules())
    with in_float8(runner, CPU), in_precision(runner, torch.bfloat16, CPU):
        cast = [any(isinstance(m, Float8Linear) for m in b.modules()) for b in get_blocks(model)]
        assert cast == [False, True, True, True, True, False]
        weights = sum(p.numel() for b in get_blocks(model)[1:5] for p in b.parameters())
        assert weights < sum(b.numel() for m in runner.modules() for b in m.buffers())
    assert all(one is two for one, two in zip(runner.modules(), before, strict=True))


def test_float8_learns_what_float32_learns() -> None:
    losses = []
    for precision in ("float32", "float8"):
        torch.manual_seed(0)
        model: Any = LoRA(rank=4).attach(language_model("llama"), [0, 5]).model
        eight = in_float8(model, CPU) if precision == "float8" else nullcontext()
        with eight, in_precision(model, weight_dtype(precision), CPU):
            done = train(
                model, rows(), loss=TASK.loss, collate=TASK.collate, device=CPU,
                options=TrainOptions(steps=20, lr=1e-2, precision=precision),
            )  # fmt: skip
        losses.append(done.loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[1] != losses[0]


def test_what_cannot_be_in_float8_is_refused() -> None:
    runner: Any = LoRA(rank=2).attach(language_model("llama"), range(6)).model
    with pytest.raises(OffsiteError, match="leave out --precision float8"), in_float8(runner, CPU):
        pass
    with pytest.raises(OffsiteError, match="cannot be sharded"):
        TrainOptions(precision="float8", shard=True)
    with pytest.raises(OffsiteError, match="use one of: float32, bfloat16, float16, float8"):
        TrainOptions(precision="float4")


def test_the_other_weights_are_then_in_bfloat16() -> None:
    assert weight_dtype("float8") == torch.bfloat16
    assert choose_precision("float8", torch.bfloat16, CPU) == "float8"
    with pytest.raises(OffsiteError, match="float16"):
        choose_precision("float8", torch.float16, CPU)
