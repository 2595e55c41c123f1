"""Integer weights stay integers while a model trains, and change nothing of what is computed."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

import offsite as ot
from offsite.model.layers import QuantisedLinear
from offsite.training.compiling import compiled
from tests.support.models import language_model


def quantised(bits: int, dtype: torch.dtype = torch.float32) -> QuantisedLinear:
    torch.manual_seed(bits)
    layer = QuantisedLinear(64, 48, bits, 16, bias=True)
    layer.store(torch.randn(48, 64, dtype=dtype))
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    return layer.to(dtype)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_output_and_gradients_are_those_of_the_unpacked_weight(
    bits: int, dtype: torch.dtype, autocast: bool
) -> None:
    layer = quantised(bits, dtype)
    assert layer.bias is not None
    dense = layer.dequantised()
    seen = []
    for packed in (True, False):
        inputs = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
        inputs.requires_grad_(True)
        layer.bias.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = layer(inputs) if packed else nn.functional.linear(inputs, dense, layer.bias)
        output.square().sum().backward()
        seen.append((output.detach(), inputs.grad, layer.bias.grad))
    for mine, plain in zip(*seen, strict=True):
        assert mine is not None and plain is not None
        assert mine.dtype == plain.dtype and torch.equal(mine, plain)


def kept_for_backward(model: Any, **batch: torch.Tensor) -> int:
    """Bytes of floating-point tensors that a forward pass saves, activations included."""
    seen: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            seen[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        model(**batch).logits.sum().backward()
    return sum(seen.values())


def test_a_frozen_middle_of_integers_keeps_no_unpacked_weight_for_the_backward_pass() -> None:
    model = language_model("llama", hidden_size=64, intermediate_size=512)
    kept = []
    for recipe in ([], [ot.Quantise(bits=4)]):
        offer, _ = ot.make_offer(model, adapter=ot.ends(1, 1), recipe=recipe)
        attached = ot.LoRA(rank=2).attach(offer.model, offer.manifest.adapter)
        kept.append(kept_for_backward(attached.model, input_ids=torch.arange(4)[None]))
    frozen = sum(p.nbytes for block in model.model.layers[1:-1] for p in block.parameters())
    assert kept[0] > frozen > 0
    assert kept[1] < kept[0] - 0.9 * frozen


class Pair(GradientCheckpointingLayer):  # type: ignore[misc]
    """Two layers of integers as one block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (QuantisedLinear(i, o, 4, 16, False) for i, o in ((64, 96), (96, 64)))
        for layer in (self.up, self.down):
            layer.store(torch.randn(layer.out_features, layer.in_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + cast(torch.Tensor, self.down(torch.relu(self.up(inputs))))


def test_compiled_blocks_of_integers_keep_no_unpacked_weight_either() -> None:
    block, shapes = Pair(), []

    def see(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    before = counters["frames"]["ok"]
    with compiled(block, backend="aot_eager_decomp_partition"):
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            output = block(torch.randn(2, 5, 64, requires_grad=True))
        output.sum().backward()
    assert counters["frames"]["ok"] > before
    assert not {(96, 64), (64, 96)} & set(shapes)
    assert {(96, 32), (64, 48)} <= set(shapes)  # two codes in a byte
