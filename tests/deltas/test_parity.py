"""Each method against peft or against a slow, obvious reference, on whole tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from offsite.deltas import METHODS
from offsite.deltas.reparameterisation.intrinsic import Fastfood, Projected, hadamard
from offsite.deltas.specification.diff_pruning import SPEED, SparseDifference
from offsite.deltas.specification.masking import BinaryMask, pack_bits, unpack_bits
from offsite.deltas.targets import part_of, sublayer_outputs
from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.model.layers import linear_spec
from tests.support.methods import ADAPTER, FAMILIES, METHOD_CASES, disturb, small_model
from tests.support.models import (
    LANGUAGE,
    VISION,
    inputs_for,
    language_model,
    output_of,
    vision_model,
)


@pytest.mark.parametrize("family", [*LANGUAGE, *VISION])
def test_every_parameter_has_the_right_part(family: str) -> None:
    model = language_model(family) if family in LANGUAGE else vision_model(family)
    block = get_blocks(model)[0]
    parts = {name: part_of(name) for name, _ in block.named_parameters()}
    for name, part in parts.items():
        vector = dict(block.named_parameters())[name].dim() == 1
        if part == "norm":
            assert vector, f"{name} is a matrix, so no norm"
        elif name.endswith("weight"):
            assert not vector, f"{name} is a vector, so a norm, not {part}"
    assert set(parts.values()) == {"norm", "attention", "mlp"}
    outputs = sublayer_outputs(block)
    for part in ("attention", "mlp"):
        spec = linear_spec(outputs[part])
        assert spec is not None and spec.outputs == 16


def test_hadamard_is_the_matrix() -> None:
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    x = torch.randn(16, 3, dtype=torch.float64).T.requires_grad_()  # not contiguous
    before = x.detach().clone()
    torch.testing.assert_close(hadamard(x), x @ matrix.T.double() / 4)
    assert torch.equal(x, before) and hadamard(x[:, :1]).equal(x[:, :1])
    torch.autograd.gradcheck(hadamard, x)


def test_fastfood_is_its_dense_matrix_and_isotropic() -> None:
    import numpy as np

    project = Fastfood(20, (40, 24), np.random.RandomState(0))
    columns = torch.stack([project(row).flatten() for row in torch.eye(20)], 1)
    theta = torch.randn(20)
    torch.testing.assert_close(project(theta).flatten(), columns @ theta, rtol=1e-4, atol=1e-5)
    assert 0.8 < columns.pow(2).mean().sqrt() * math.sqrt(32) < 1.2
    again = Fastfood(20, (40, 24), np.random.RandomState(0))
    assert torch.equal(project(theta), again(theta))
    assert abs(float(torch.corrcoef(columns.T).fill_diagonal_(0).abs().max())) < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_intrinsic_is_weight_plus_scaled_projection(family: str) -> None:
    method, model = METHOD_CASES["intrinsic"], small_model(family)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    attached = method.attach(model, ADAPTER)
    disturb(attached.model)
    found = {n: m for n, m in attached.model.named_modules() if isinstance(m, Projected)}
    parts = {
        n.replace(".parametrizations.weight.0", ".weight"): (p.project(p.theta) * p.scale).detach()
        for n, p in found.items()
    }
    merged = dict(attached.merge().named_parameters())
    assert parts
    for name, difference in parts.items():
        torch.testing.assert_close(merged[name], plain[name] + difference, rtol=0, atol=1e-6)


def test_bits_are_one_each_and_come_back() -> None:
    bits = torch.rand(7, 5) > 0.5
    packed = pack_bits(bits)
    assert packed.dtype == torch.uint8 and packed.shape == (5,)
    slow = [
        sum(int(b) << i for i, b in enumerate(bits.flatten()[k : k + 8])) for k in range(0, 35, 8)
    ]
    assert packed.tolist() == slow
    assert torch.equal(unpack_bits(packed, (7, 5)), bits)


def test_mask_gradient_is_straight_through() -> None:
    weight = torch.randn(4, 6)
    mask = BinaryMask(weight)
    with torch.no_grad():
        mask.score[0, 0] = -1
    upstream = torch.randn(4, 6)
    result = mask(weight)
    assert result[0, 0] == 0 and torch.equal(result.flatten()[1:], weight.flatten()[1:])
    result.backward(upstream)
    torch.testing.assert_close(mask.score.grad, upstream * weight)


def test_pressure_brings_diff_pruning_to_its_density() -> None:
    """Numbers that matter stay open while the expected density falls to the target."""
    torch.manual_seed(0)
    weight, wanted = torch.zeros(40, 40), torch.zeros(40, 40)
    wanted.view(-1)[torch.randperm(1600)[:80]] = torch.randn(80).sign() * 0.1
    part = SparseDifference(weight, 0.05).train()
    optimiser = torch.optim.Adam(part.parameters(), 1e-3)
    for _ in range(300):
        optimiser.zero_grad()
        (part(weight) - wanted).pow(2).sum().backward()
        optimiser.step()
    part.eval()
    assert len(part.kept()) == 80
    assert (wanted.flatten()[part.kept()] != 0).float().mean() > 0.9
    assert (part(weight) - wanted).norm() < 0.3 * wanted.norm()
    opened = torch.sigmoid(part.gate * SPEED - 2 / 3 * math.log(0.1 / 1.1))
    assert 0.04 < opened.mean() < 0.06


def test_diff_pruning_ships_sorted_indices_and_refuses_others() -> None:
    method = METHOD_CASES["diff_pruning"]
    attached = method.attach(small_model("llama"), ADAPTER)
    disturb(attached.model)
    tensors = dict(attached.tensors())
    name = next(n for n in tensors if n.endswith(".indices"))
    assert tensors[name].dtype == torch.int32 and (tensors[name].diff() > 0).all()
    for bad in (tensors[name].flip(0), tensors[name] + 10**6, tensors[name] - 10**6):
        with pytest.raises(OffsiteError, match="ascend"):
            attached.load(tensors | {name: bad})


class Slow(nn.Module):
    """A linear layer followed by a bottleneck, written out."""

    def __init__(self, layer: nn.Module, module: Any) -> None:
        super().__init__()
        self.layer, self.module = layer, module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        inner = nn.functional.gelu(y @ self.module.down.weight.T + self.module.down.bias)
        output: torch.Tensor = y + inner @ self.module.up.weight.T + self.module.up.bias
        return output


@pytest.mark.parametrize("family", FAMILIES)
def test_bottleneck_is_the_layer_written_out(family: str) -> None:
    method = METHOD_CASES["bottleneck"]
    runner = method.attach(small_model(family), ADAPTER).model.eval()
    disturb(runner)
    slow, batch = small_model(family), inputs_for(runner)
    for name, module in list(runner.named_modules()):
        if name.endswith(".bottleneck"):
            owner, _, leaf = name.removesuffix(".bottleneck").rpartition(".")
            parent = slow.get_submodule(owner)
            setattr(parent, leaf, Slow(getattr(parent, leaf), module))
    torch.testing.assert_close(output_of(runner, batch), output_of(slow, batch))


def test_vera_projections_agree_between_emulator_and_full_model() -> None:
    method = METHODS["vera"](rank=4, seed=7)
    full = method.attach(small_model("llama"), (0, 5))
    small = method.attach(language_model("llama", num_hidden_layers=3), (0, 2))
    for name in ("vera_A", "vera_B"):
        one, other = (getattr(a.model.base_model, name) for a in (full, small))
        assert torch.equal(one["default"], other["default"])
    assert not any("vera_A" in key or "vera_B" in key for key in full.tensors())
