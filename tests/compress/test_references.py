"""Every method against a slow and obvious version of itself."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.compress.crash import Share, cluster, linear_cka, pooled_states
from offsite.compress.drop import Drop
from offsite.compress.importance import angle, bypass, candidate_runs, importance, weakest_run
from offsite.compress.linears import linears, matrix, with_matrix
from offsite.compress.noise import Noise, secret_normal
from offsite.compress.prune import prune
from offsite.compress.quantise import fitting_group, quantised
from offsite.compress.rank import Rank, factorised, largest
from offsite.compress.step import Needs, compress
from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.model.layers import LowRankLinear
from offsite.model.replay import observe
from offsite.model.split import ends
from tests.support.context import emulator, generate, logits, world
from tests.support.models import LANGUAGE


def test_linear_cka_is_its_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 5).double(), torch.randn(20, 7).double()
    centre = torch.eye(20, dtype=torch.float64) - torch.ones(20, 20).double() / 20

    def hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.trace(k @ centre @ m @ centre) / 19**2

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-12)
    rotated = x @ torch.linalg.qr(torch.randn(5, 5).double())[0] * 3 + 1
    assert linear_cka(x, rotated) == pytest.approx(1)
    assert linear_cka(x, torch.ones(20, 2).double()) == 0


def test_pooled_states_are_token_means() -> None:
    context = world()
    states = pooled_states(context, [1, 4])
    batch = next(context.batches(32, 8))
    hidden = context.model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
    assert states[1].shape == (256, 16)
    assert torch.allclose(states[4][:8], hidden[5].double().mean(1), atol=1e-6)


def test_clusters_merge_the_most_similar_neighbours() -> None:
    likeness = {(1, 2): 0.9, (2, 3): 0.5, (3, 4): 0.8, (4, 5): 0.6, (7, 8): 0.95}
    found = [cluster([[1, 2, 3, 4, 5], [7, 8]], keep, lambda a, b: likeness[a, b])
             for keep in (7, 6, 5, 4, 3, 2)]  # fmt: skip
    assert found[0] == [[1], [2], [3], [4], [5], [7], [8]]
    assert found[1] == [[1], [2], [3], [4], [5], [7, 8]]
    assert found[3] == [[1, 2], [3, 4], [5], [7, 8]]
    assert found[4] == [[1, 2], [3, 4, 5], [7, 8]]
    assert found[5] == [[1, 2, 3, 4, 5], [7, 8]]
    with pytest.raises(OffsiteError, match="choose 2 to 7"):
        cluster([[1, 2, 3, 4, 5], [7, 8]], 1, lambda a, b: 0)


def test_sharing_takes_the_nearest_block_of_its_own_kind() -> None:
    kinds = ["sliding_attention", "full_attention"] * 4
    context = world("gemma3", ends(2, 2), num_hidden_layers=8, layer_types=kinds)
    middle = compress([Drop(keep=2), Share()], context)  # 2 and 5 stand
    assert middle.positions == (2, 3, 4, 5)
    same = [next(b.parameters()) for b in middle.blocks]
    assert same[0] is same[2] and same[1] is same[3] and same[0] is not same[1]
    model = emulator(context, [Drop(keep=2), Share()])
    assert torch.equal(generate(model, cache=True), generate(model, cache=False))
    alone = compress([Drop(keep=1), Share()], context)  # only 3, a full one
    assert alone.positions == (3, 5)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_truncation_is_optimal_and_never_larger(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    values = torch.linalg.svdvals(weight)
    for layer in (nn.Linear(shape[1], shape[0]), Conv1D(*shape)):
        for rank in range(1, 9):
            up, down = largest(weight, rank)
            assert (weight - up @ down).norm() == pytest.approx(
                values[rank:].norm().item(), abs=1e-5
            )
            new = factorised(with_matrix(layer, weight), up, down)
            x = torch.randn(3, shape[1])
            assert torch.allclose(new(x), x @ (up @ down).T + layer.bias, atol=1e-5)
            sizes = [sum(p.numel() for p in m.parameters()) for m in (new, layer)]
            assert sizes[0] <= sizes[1]
            assert isinstance(new, LowRankLinear) == (rank * sum(shape) < math.prod(shape))


@pytest.mark.parametrize("family", LANGUAGE)
def test_selective_rank_touches_attention_alone(family: str) -> None:
    context = world(family)
    middle = compress([Rank(beta=0.8)], context)
    for position, block in zip(middle.positions, middle.blocks, strict=True):
        original = get_blocks(context.model)[position]
        left = {name for name, layer in linears(block, factors=False)}
        for name, layer in linears(original):
            feed_forward = not any(word in name for word in ("attn", "attention"))
            same = name in left and block.get_submodule(name).weight is layer.weight
            assert same == feed_forward
        assert sum(not any(w in n for w in ("attn", "attention")) for n in left) in (2, 3)


def test_pruning_keeps_the_largest() -> None:
    weight = torch.tensor([[1.0, -5.0, 2.0], [0.5, 3.0, -0.1]])
    assert prune(weight, 0.5).tolist() == [[0, -5, 2], [0, 3, 0]]
    assert (prune(torch.ones(10, 10), 0.37) != 0).sum() == 37
    assert torch.equal(prune(weight, 1.0), weight)


def test_noise_has_its_scale_and_is_keyed_by_the_weights_alone() -> None:
    context = world("llama", hidden_size=128, intermediate_size=256)
    name = "mlp.up_proj"
    original: Any = get_blocks(context.model)[1].get_submodule(name)

    def drawn() -> torch.Tensor:
        block = compress([Noise(scale=0.5)], context).blocks[0]
        return matrix(block.get_submodule(name)) - matrix(original)

    noise = drawn()
    rms = matrix(original).square().mean().sqrt()
    assert noise.square().mean().sqrt() == pytest.approx(0.5 * rms.item(), rel=0.02)
    assert torch.equal(noise, drawn())
    with torch.no_grad():  # whoever is off by one bit in one weight draws something else
        original.weight[0, 0] = torch.nextafter(original.weight[0, 0], torch.tensor(9.0))
    correlation = torch.corrcoef(torch.stack([noise.flatten(), drawn().flatten()]))[0, 1]
    assert abs(correlation) < 0.05


def test_noise_is_normal_and_has_a_key_of_256_bits() -> None:
    weight = torch.arange(7.0).view(7, 1)
    key = hashlib.sha256(hashlib.sha256(weight.numpy().tobytes()).digest() + b"5").digest()
    stream = hashlib.shake_256(key).digest(32)
    words = [int.from_bytes(stream[i : i + 4], "little", signed=True) for i in range(0, 32, 4)]
    uniform = [(word + 2**31 + 0.5) / 2**32 for word in words]
    pairs = zip(uniform[:4], uniform[4:], strict=True)
    polar = [(math.sqrt(-2 * math.log(u)), math.tau * v) for u, v in pairs]
    slow = [r * math.cos(a) for r, a in polar] + [r * math.sin(a) for r, a in polar]
    found = secret_normal(weight, 5)
    assert found.shape == (7, 1) and found.flatten().tolist() == pytest.approx(slow[:7], abs=1e-6)
    many = secret_normal(torch.ones(500, 600), 0).flatten()
    moments = [many.mean(), many.square().mean(), many.pow(3).mean(), many.pow(4).mean()]
    assert [float(m) for m in moments] == pytest.approx([0, 1, 0, 3], abs=0.03)
    assert 4 < many.abs().max() < 6.5 and (many[1:] * many[:-1]).mean().abs() < 0.01


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_the_nearest_codes(bits: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 6)
    new = quantised(layer, bits, 8)
    top = 2 ** (bits - 1) - 1
    for row in range(6):
        for start in range(0, 24, 8):
            group = layer.weight[row, start : start + 8].detach()
            scale = group.abs().max() / top
            codes = torch.arange(-top, top + 1) * scale
            nearest = codes[(group[:, None] - codes).abs().argmin(1)]
            assert torch.allclose(new.dequantised()[row, start : start + 8], nearest, atol=1e-6)
    assert [fitting_group(n, 64) for n in (320, 864, 7, 11008, 53)] == [64, 72, 7, 64, 53]


def test_influence_angle_and_leaving_out_by_hand() -> None:
    context = world()
    table = importance(context, learned={"scaleot": range(6)})
    assert table["scaleot"] == tuple(range(6))
    task: Any = context.task
    sums = {"influence": 0.0, "angular": 0.0, "leave_one_out": 0.0}
    rows: Any = context.data
    count = math.ceil(len(rows) / 8)  # data of few rows is looked at once
    assert count < 16
    for batch in context.batches(count, 8):
        out = context.model(input_ids=batch["input_ids"], output_hidden_states=True)
        x, y = out.hidden_states[2], out.hidden_states[3]
        cosine = (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)
        sums["influence"] += (1 - cosine).mean().item() / count
        sums["angular"] += (cosine.acos() / math.pi).mean().item() / count
        short = emulator(context, [_Without(2)])
        losses = [task.loss(m, batch).item() for m in (short, context.model)]
        sums["leave_one_out"] += (losses[0] - losses[1]) / count
    for signal, value in sums.items():
        assert table[signal][2] == pytest.approx(value, rel=1e-3, abs=1e-5)
    with pytest.raises(OffsiteError, match="of 2 blocks"):
        importance(context, [], {"other": (1.0, 2.0)})


class _Without:
    kind, needs = "without", Needs()

    def __init__(self, position: int) -> None:
        self.position = position

    def __call__(self, middle: Any, context: Any) -> Any:
        pairs = [
            (p, b)
            for p, b in zip(middle.positions, middle.blocks, strict=True)
            if p != self.position
        ]
        return type(middle)(tuple(b for _, b in pairs), tuple(p for p, _ in pairs))


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_bypass_is_a_model_without_the_block(family: str) -> None:
    context = world(family)
    with bypass(context.model, [2, 3]):
        passed = logits(context.model)
    assert torch.allclose(passed, logits(emulator(context, [_Without(2), _Without(3)])), atol=1e-6)
    assert not torch.allclose(passed, logits(context.model), atol=1e-3)


def test_weakest_run_is_the_best_of_all_runs() -> None:
    context = world(adapter=(0, 4), num_hidden_layers=9)
    assert list(candidate_runs(context.split, context.split.middle, 3)) == [
        (1, 2, 3), (5, 6, 7), (6, 7, 8),
    ]  # fmt: skip
    angles = {}
    for run in candidate_runs(context.split, context.split.middle, 3):
        total = 0.0
        for batch in context.batches(16, 8):
            calls = observe(context.model, batch)
            total += angle(calls[run[0]], calls[run[-1]])
        angles[run] = total
    best = min(angles, key=lambda run: angles[run])
    assert weakest_run(context, context.split.middle, 3) == best
    kept = compress([Drop(keep=4, by="angular")], context).positions
    assert set(context.split.middle) - set(kept) == set(best)
    with pytest.raises(OffsiteError, match="longest run is 4"):
        weakest_run(context, context.split.middle, 5)


def test_signals_choose_what_drop_keeps() -> None:
    context = world()
    for signal in ("influence", "leave_one_out"):
        scores = importance(context, [signal])[signal]
        kept = compress([Drop(keep=2, by=signal)], context).positions
        best = max(
            itertools.combinations(context.split.middle, 2), key=lambda c: sum(scores[p] for p in c)
        )
        assert kept == best
