"""Nothing outside the blocks is trained, whatever a family calls its layers; aliases of methods."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from offsite.deltas import ALIASES, METHODS, LoRA, method_json, parse_method
from offsite.deltas.method import Attached
from offsite.deltas.parameters import AttachedParameters
from offsite.deltas.specification.full import Full
from offsite.deltas.targets import linear_names
from offsite.errors import OffsiteError
from offsite.model.blocks import block_of, block_path, freeze, get_blocks
from tests.support.models import language_model

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": 300, "pad_token_id": 0,
}  # fmt: skip
ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, Any] = {
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": transformers.Qwen3MoeConfig(**SIZES, **ROUTED, head_dim=16),
    "llama4": transformers.Llama4TextConfig(
        **SIZES, head_dim=16, num_local_experts=2, interleave_moe_layer_step=2,
        intermediate_size_mlp=64, attention_chunk_size=16,
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **SIZES, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, moe_intermediate_size=16, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "qwen3_next": transformers.Qwen3NextConfig(
        **SIZES, **ROUTED, head_dim=16, shared_expert_intermediate_size=16,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "vera", "ia3", "full", "masking"])
def test_only_the_given_blocks_are_trained(family: str, kind: str) -> None:
    """Peft turns layers named like fused experts into parameters of all blocks (peft 3711)."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family])
    path = block_path(model)
    attached = METHODS[kind]().attach(model, (0, 3))
    trained = [n for n, p in attached.model.named_parameters() if p.requires_grad]
    assert trained and {block_of(name, path) for name in trained} == {0, 3}
    output = attached.model(input_ids=torch.arange(1, 9)[None], use_cache=False)
    output.logits.float().pow(2).mean().backward()


class Everywhere(Full):
    """A method that forgets which blocks it was given."""

    def install(self, model: nn.Module, blocks: Any) -> Attached:
        freeze(model, [model])
        return AttachedParameters(self, model)


def test_a_block_that_others_share_parts_with_cannot_be_tuned_whole() -> None:
    """As in Zamba; 'use full' would be no advice there."""
    model = language_model("llama")
    blocks = get_blocks(model)
    blocks[0].self_attn = blocks[3].self_attn
    with pytest.raises(OffsiteError, match=r"outside the blocks \[3\]; use lora with targets="):
        METHODS["full"]().attach(model, (3,))


def test_a_method_that_trains_other_blocks_is_refused() -> None:
    with pytest.raises(OffsiteError, match=r"outside the blocks \[0, 5\]"):
        Everywhere().attach(language_model("llama"), (0, 5))


def test_layers_that_peft_cannot_take_are_named() -> None:
    config = transformers.MambaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=4, state_size=8, pad_token_id=0
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(OffsiteError, match=r"out_proj.*targets="):
        LoRA(rank=2).attach(model, (0, 3))
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert LoRA(rank=2, targets="in_proj").attach(model, (0, 3)).parameters


def test_names_that_people_know_are_aliases(run: Any) -> None:
    assert parse_method(method_json("dora:rank=4")) == LoRA(rank=4, dora=True)
    model = language_model("llama")
    assert linear_names(model, (0,), "all-linear") == linear_names(model, (0,), "all")
    for name in ALIASES:
        assert parse_method(method_json(name)).kind == ALIASES[name]["kind"]
    status, out, _ = run("deltas", "--json")
    listed = json.loads(out)
    assert status == 0 and listed["aliases"] == ALIASES
    assert listed["deltas"]["lora"]["merges"] is True
    assert listed["deltas"]["bottleneck"]["merges"] is False


def test_shared_experts_are_tuned_and_saved_under_their_own_names() -> None:
    """Peft would read ``gate_proj`` of DeepSeek as the fused experts of every block."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES["deepseek_v3"])
    attached = LoRA(rank=2).attach(model, (0, 3))
    tensors = {name: torch.randn_like(value) for name, value in attached.tensors().items()}
    assert any("3.mlp.shared_experts.gate_proj.lora_A" in name for name in tensors)
    attached.load(tensors)
    for name, value in attached.tensors().items():
        assert torch.equal(value, tensors[name]), name
    assert model.config.model_type == "deepseek_v3" and "model_type" not in vars(model.config)
