"""Prefixes and prompts against peft or a slow, obvious reference, on whole tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offsite.deltas import METHODS
from offsite.deltas.addition.learn_decoder import learn_decoder
from offsite.errors import OffsiteError
from offsite.exchange.side import SideTensors, attach_side
from offsite.model.blocks import get_blocks
from offsite.model.tensors import save_tensors
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from tests.support.methods import ADAPTER, FAMILIES, METHOD_CASES, disturb, small_model
from tests.support.models import inputs_for, language_model, output_of, vision_model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2"])
def test_prepended_prefix_is_a_longer_softmax(family: str, implementation: str) -> None:
    """The attention of one call, against scores, softmax and sum over prefix and past."""
    method = METHOD_CASES["prefix-prepended"]
    model = language_model(family, attn_implementation=implementation)
    runner = method.attach(model, ADAPTER).model.eval()
    module: Any = next(m for m in get_blocks(runner)[1].modules() if hasattr(m, "prefix"))
    from offsite.deltas.addition.prefix import prefix_attention

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
    runner = method.attach(model, (4,)).model.eval()
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
    attached = method.attach(small_model(family), ADAPTER)
    runner: Any = attached.model.eval()
    disturb(runner)
    save_tensors(attached.tensors(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(attached.peft_config() or "")
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
    runner = METHODS["prompt"](length=3).attach(model, ADAPTER).model.eval()
    first, second = torch.randint(1, 300, (1, 5)), torch.randint(1, 300, (1, 7))
    row = torch.cat((first, second), 1)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    packed = output_of(runner, {"input_ids": row, "position_ids": positions})
    alone = [output_of(runner, {"input_ids": ids}) for ids in (first, second)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


def test_prompt_pads_labels_and_refuses_rows_that_do_not_fit() -> None:
    model = small_model("llama")
    runner = METHODS["prompt"](length=3).attach(model, ADAPTER).model.eval()
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
    runner = METHOD_CASES[name].attach(small_model(family), ADAPTER).model.eval()
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
    tasks: list[Any] = [[row(torch.arange(12) * k % 13 + 20) for _ in range(8)] for k in (1, 2, 3)]
    before = [task.evaluate(model, data).value for data in tasks]
    options = TrainOptions(steps=150, lr=2e-2, batch_size=6)
    pairs = [(task, data) for data in tasks]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    sizes: dict[str, Any] = {"length": 4, "dim": 10, "hidden": 8}
    tensors = learn_decoder(model, pairs, **sizes, options=options, device="cpu")
    assert not hasattr(model, "prompt") and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    attach_side(model, SideTensors("prompt_decoder", tensors))
    assert "decoder" not in "".join(model.state_dict())
    runner: Any = METHODS["intrinsic_prompt"]().attach(model, ADAPTER).model
    z = runner.prompt.z
    assert z.shape == (10,) and [n for n, p in runner.named_parameters() if p.requires_grad]
    optimiser = torch.optim.Adam([z], 0.1)
    for data, start in zip(tasks, before, strict=True):
        for _ in range(30):
            optimiser.zero_grad()
            torch.autograd.backward(task.loss(runner, task.collate(data)))
            optimiser.step()
        assert task.evaluate(runner, data).value < start - 0.03


def test_an_intrinsic_prompt_without_a_decoder_names_what_to_do() -> None:
    with pytest.raises(OffsiteError, match="ask the owner"):
        METHODS["intrinsic_prompt"]().attach(language_model("llama"), ADAPTER)
    with pytest.raises(OffsiteError, match="not make a prompt decoder"):
        odd = SideTensors("prompt_decoder", {"inner": torch.zeros(2, 2)})
        attach_side(language_model("llama"), odd)


def row(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, "labels": ids}
