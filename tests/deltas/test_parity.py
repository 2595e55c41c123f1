"""Each method against peft or against a slow, obvious reference, on whole tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ADAPTER, FAMILIES, METHOD_CASES, disturb, small_model
from torch import nn

from conftest import LANGUAGE, VISION, inputs_for, language_model, output_of, vision_model
from offsite.blocks import get_blocks
from offsite.deltas import METHODS
from offsite.deltas.diff_pruning import SPEED, SparseDifference
from offsite.deltas.intrinsic import Fastfood, hadamard
from offsite.deltas.learn_decoder import learn_decoder
from offsite.deltas.masking import BinaryMask, pack_bits, unpack_bits
from offsite.deltas.reweight import reweighted
from offsite.deltas.targets import part_of, sublayer_outputs
from offsite.errors import OffsiteError
from offsite.layers import linear_spec
from offsite.prompt_decoder import give_decoder
from offsite.tasks.text import CausalText
from offsite.tensors import save_tensors
from offsite.train import TrainOptions


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
    x = torch.randn(3, 16)
    torch.testing.assert_close(hadamard(x), x @ matrix.T / 4)


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
    runner = method.attach(model, ADAPTER)
    disturb(runner)
    parts = {n: (p.project(p.theta) * p.scale).detach() for n, p in reweighted(runner).items()}
    merged = dict(method.merge(runner).named_parameters())
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
    runner = method.attach(small_model("llama"), ADAPTER)
    disturb(runner)
    tensors = dict(method.tensors(runner))
    name = next(n for n in tensors if n.endswith(".indices"))
    assert tensors[name].dtype == torch.int32 and (tensors[name].diff() > 0).all()
    for bad in (tensors[name].flip(0), tensors[name] + 10**6, tensors[name] - 10**6):
        with pytest.raises(OffsiteError, match="ascend"):
            method.load(runner, tensors | {name: bad})


class Slow(nn.Module):
    """A linear layer followed by a bottleneck, written out."""

    def __init__(self, layer: nn.Module, module: Any) -> None:
        super().__init__()
        self.layer, self.module = layer, module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        inner = nn.functional.gelu(y @ self.module.down.weight.T + self.module.down.bias)
        return y + inner @ self.module.up.weight.T + self.module.up.bias


@pytest.mark.parametrize("family", FAMILIES)
def test_bottleneck_is_the_layer_written_out(family: str) -> None:
    method = METHOD_CASES["bottleneck"]
    runner = method.attach(small_model(family), ADAPTER).eval()
    disturb(runner)
    slow, batch = small_model(family), inputs_for(runner)
    for name, module in list(runner.named_modules()):
        if name.endswith(".bottleneck"):
            owner, _, leaf = name.removesuffix(".bottleneck").rpartition(".")
            parent = slow.get_submodule(owner)
            setattr(parent, leaf, Slow(getattr(parent, leaf), module))
    torch.testing.assert_close(output_of(runner, batch), output_of(slow, batch))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
def test_prepended_prefix_is_a_longer_softmax(family: str, implementation: str) -> None:
    """The attention of one call, against scores, softmax and sum over prefix and past."""
    method = METHOD_CASES["prefix-prepended"]
    model = language_model(family, attn_implementation=implementation)
    runner = method.attach(model, ADAPTER).eval()
    module = next(m for m in get_blocks(runner)[1].modules() if hasattr(m, "prefix"))
    from offsite.deltas.prefix import prefix_attention

    heads, width = 2, 8
    groups = module.prefix.key.shape[0]
    query = torch.randn(2, heads, 5, width)
    key, value = torch.randn(2, groups, 5, width), torch.randn(2, groups, 5, width)
    mask = torch.zeros(2, 1, 5, 5).masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -1e30)
    mask[1, :, :, 0] = -1e30  # a padded position; its own row sees the prefix alone
    fast, _ = prefix_attention(module, query, key, value, mask, scaling=0.3, dropout=0.0)
    keys = torch.cat((module.prefix.key.expand(2, -1, -1, -1), key), 2)
    values = torch.cat((module.prefix.value.expand(2, -1, -1, -1), value), 2)
    for row in range(2):
        for head in range(heads):
            group = head * groups // heads
            for position in range(5):
                scores = keys[row, group] @ query[row, head, position] * 0.3
                shown = [0.0] * 3 + mask[row, 0, position].tolist()
                weights = torch.softmax(scores + torch.tensor(shown), 0)
                slow = weights @ values[row, group]
                torch.testing.assert_close(fast[row, position, head], slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["prefix", "prefix-prepended"])
def test_prefix_leaves_other_blocks_alone(name: str) -> None:
    model = small_model("llama")
    method = METHOD_CASES[name]
    runner = method.attach(model, (4,)).eval()
    configs = {
        id(m.config) for b in get_blocks(runner) for m in b.modules() if hasattr(m, "q_proj")
    }
    assert len(configs) == 2 and model.config._attn_implementation == "sdpa"
    batch = inputs_for(model)
    disturb(runner)
    after = runner(**batch, output_hidden_states=True).hidden_states
    plain = small_model("llama")(**batch, output_hidden_states=True).hidden_states
    for depth in range(5):
        assert torch.equal(after[depth], plain[depth])
    assert not torch.equal(after[5], plain[5])


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_opens_in_peft_with_the_same_output(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    method = METHODS["prompt"](length=4)
    runner = method.attach(small_model(family), ADAPTER).eval()
    disturb(runner)
    save_tensors(method.tensors(runner), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(method.peft_config(runner))
    other = PeftModel.from_pretrained(small_model(family), tmp_path).eval()
    ids = inputs_for(runner)["input_ids"]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        mine = runner(input_ids=ids, attention_mask=mask).logits
        theirs = other(input_ids=ids, attention_mask=mask).logits[:, 4:]
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_prompt_stands_before_every_packed_example(family: str, implementation: str) -> None:
    model = language_model(family, attn_implementation=implementation)
    runner = METHODS["prompt"](length=3).attach(model, ADAPTER).eval()
    first, second = torch.randint(1, 300, (1, 5)), torch.randint(1, 300, (1, 7))
    row = torch.cat((first, second), 1)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    packed = output_of(runner, {"input_ids": row, "position_ids": positions})
    alone = [output_of(runner, {"input_ids": ids}) for ids in (first, second)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


def test_prompt_pads_labels_and_refuses_rows_that_do_not_fit() -> None:
    model = small_model("llama")
    runner = METHODS["prompt"](length=3).attach(model, ADAPTER).eval()
    ids = torch.randint(1, 300, (2, 9))
    output = runner(input_ids=ids, labels=ids)
    slow = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, slow, rtol=0.2, atol=0)  # theirs also predicts token 0
    with pytest.raises(OffsiteError, match="shorter prompt"):
        runner(input_ids=torch.randint(1, 300, (1, 127)))
    with pytest.raises(OffsiteError, match="language model"):
        METHODS["prompt"]().attach(vision_model("vit"), (0, 5))


@pytest.mark.parametrize(
    "name", ["bottleneck", "prefix", "prefix-prepended", "prompt", "intrinsic_prompt"]
)
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
def test_generation_with_cache_and_left_padding(name: str, family: str) -> None:
    runner = METHOD_CASES[name].attach(small_model(family), ADAPTER).eval()
    disturb(runner, 0.3)
    ids = torch.randint(1, 300, (2, 6), generator=torch.Generator().manual_seed(5))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    cached = runner.generate(ids, attention_mask=mask, **options)
    assert torch.equal(
        cached, runner.generate(ids, attention_mask=mask, use_cache=False, **options)
    )
    grown = ids
    for _ in range(5):
        following = runner(input_ids=grown).logits[:, -1:].argmax(-1)
        grown = torch.cat((grown, following), 1)
    assert torch.equal(cached, grown)
    padded = runner.generate(
        nn.functional.pad(ids, (3, 0)), attention_mask=nn.functional.pad(mask, (3, 0)), **options
    )
    assert torch.equal(padded[:, 3:], cached)


def test_a_learnt_decoder_beats_its_start_on_every_task() -> None:
    task, model = CausalText(max_length=12), language_model("llama", vocab_size=40)
    tasks = [[row(torch.arange(12) * k % 13 + 20) for _ in range(8)] for k in (1, 2, 3)]
    before = [task.evaluate(model, data).value for data in tasks]
    options = TrainOptions(steps=150, lr=2e-2, batch_size=6)
    pairs = [(task, data) for data in tasks]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = {"length": 4, "dim": 10, "hidden": 8}
    tensors = learn_decoder(model, pairs, **sizes, options=options, device="cpu")
    assert not hasattr(model, "prompt") and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    give_decoder(model, tensors)
    assert "decoder" not in "".join(model.state_dict())
    runner = METHODS["intrinsic_prompt"]().attach(model, ADAPTER)
    z = runner.prompt.z
    assert z.shape == (10,) and [n for n, p in runner.named_parameters() if p.requires_grad]
    optimiser = torch.optim.Adam([z], 0.1)
    for data, start in zip(tasks, before, strict=True):
        for _ in range(30):
            optimiser.zero_grad()
            task.loss(runner, task.collate(data)).backward()
            optimiser.step()
        assert task.evaluate(runner, data).value < start - 0.03


def test_an_intrinsic_prompt_without_a_decoder_names_what_to_do() -> None:
    with pytest.raises(OffsiteError, match="ask the owner"):
        METHODS["intrinsic_prompt"]().attach(language_model("llama"), ADAPTER)
    with pytest.raises(OffsiteError, match="no prompt decoder"):
        give_decoder(language_model("llama"), {"inner": torch.zeros(2, 2)})


def row(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, "labels": ids}


def test_vera_projections_agree_between_emulator_and_full_model() -> None:
    method = METHODS["vera"](rank=4, seed=7)
    full = method.attach(small_model("llama"), (0, 5))
    small = method.attach(language_model("llama", num_hidden_layers=3), (0, 2))
    for name in ("vera_A", "vera_B"):
        one, other = getattr(full.base_model, name), getattr(small.base_model, name)
        assert torch.equal(one["default"], other["default"])
    assert not any("vera_A" in key or "vera_B" in key for key in method.tensors(full))
