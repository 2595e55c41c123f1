"""Tiny models of the causal families of transformers, in the proportions of their defaults."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

BLOCKS, WIDTH, VOCABULARY = 8, 64, 512
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
WIDE = ("hidden_size", "d_model", "n_embd", "dim", "model_dim", "embed_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
FIXED = ("vocab", "token", "position", "_id", "window", "max_", "chunk", "seq", "n_positions")
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}  # fmt: skip
LACKING: dict[str, dict[str, Any]] = {  # what a default leaves out, or says for its own depth alone
    "gpt_neo": {"attention_types": [[["global", "local"], BLOCKS // 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (BLOCKS // 2)},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] * (BLOCKS // 4)
    },
    "granitemoehybrid": {  # its heads must fill twice the width, and its default has mamba alone
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "layer_types": ["mamba", "mamba", "mamba", "attention"] * (BLOCKS // 4),
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "dots3_note": {
        "text_config": {
            "per_layer_config": {},
            "head_dim": 48,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "index_head_dim": 16,
        }
    },
    "inkling_text": {
        "head_dim": 16,
        "swa_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "d_rel": 16,
    },
    "qwen4_exp_text": INDEXER,
    "qwen4_exp": {"text_config": INDEXER},
    "reformer": {"is_decoder": True},
    "xlm": {"emb_dim": WIDTH, "n_words": VOCABULARY, "n_layers": BLOCKS, "n_heads": 4},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * (BLOCKS // 2)},
}


def build(family: str) -> Any:
    """A tiny model of a family: the first set of changes that transformers takes."""
    config_class = CONFIG_MAPPING[family]
    error: Exception | None = None
    for changes in attempts(config_class):
        try:
            torch.manual_seed(0)
            config = config_class(**changes)
            with torch.device("meta"):
                probe = transformers.AutoModelForCausalLM.from_config(config)
            if sum(p.numel() for p in probe.parameters()) > 2e8:
                raise ValueError("it has more than 200M parameters at this size")
            model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
            logits(model, {"input_ids": torch.arange(1, 13)[None]})
            return model
        except TimeoutError:
            raise
        except Exception as found:  # try the next set
            error = error or found
    assert error is not None
    raise error


def attempts(config_class: Any) -> list[dict[str, Any]]:
    """Sets of changes to a default configuration, from true proportions to the plainest."""
    own = shrunk(config_class)
    plain = {k: v for k, v in own.items() if k in (*DEPTH, *WIDE, *HEADS, "vocab_size")}
    with_experts = {k: v for k, v in own.items() if "expert" in k} | plain
    heads = {"num_key_value_heads": 4, "head_dim": WIDTH // 4} | own
    few = {k: v for k, v in own.items() if k in (*DEPTH, "vocab_size")}
    lacking = LACKING.get(config_class.model_type, {})
    return [joined(one, lacking) for one in (own, heads, with_experts, plain, few)]


def joined(changes: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both sets of changes; inside a part that both change, the second counts."""
    parts = {
        name: joined(changes[name], value)
        for name, value in more.items()
        if isinstance(value, dict) and isinstance(changes.get(name), dict)
    }
    return changes | more | parts


def shrunk(config_class: Any) -> dict[str, Any]:
    """Changes that make a default configuration tiny: widths divided by one factor."""
    default = config_class()
    changes: dict[str, Any] = {}
    for name, part in getattr(default, "sub_configs", {}).items():
        if getattr(default, name, None) is not None and isinstance(part, type):
            with suppress(Exception):
                changes[name] = shrunk(type(getattr(default, name)))
    known = {k: v for k, v in default.to_dict().items() if k in parameters(config_class)}
    width = next((known[k] for k in WIDE if isinstance(known.get(k), int)), None)
    if width is None:
        return changes
    factor = WIDTH / width
    for key, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if key in DEPTH:
            changes[key] = BLOCKS
        elif key == "num_kv_shared_layers":
            changes[key] = min(value, 2)
        elif key in WIDE:
            changes[key] = WIDTH
        elif key in HEADS:
            changes[key] = 4
        elif key == "num_key_value_heads":
            changes[key] = 4 if value == known.get("num_attention_heads") else 2
        elif key == "head_dim":
            changes[key] = WIDTH // 4
        elif key == "vocab_size":
            changes[key] = VOCABULARY
        elif any(part in key for part in FIXED) or ("expert" in key and "size" not in key):
            continue
        elif value >= 48:
            changes[key] = max(8, 8 * round(value * factor / 8))
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(known.get(key), int) and known[key] >= VOCABULARY:
            changes[key] = 0
    return changes


def parameters(config_class: Any) -> set[str]:
    """The names that a configuration class takes."""
    return set(inspect.signature(config_class.__init__).parameters) | set(
        getattr(config_class, "__dataclass_fields__", {})
    )


def experts(config: Any) -> int:
    """How many experts a layer has, by whatever name."""
    text = config.get_text_config().to_dict()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return max((text[name] for name in names if isinstance(text.get(name), int)), default=0)


@torch.no_grad()
def logits(model: Any, batch: Any) -> torch.Tensor:
    """The logits of a batch; every call starts from the same random state."""
    torch.manual_seed(0)
    found: torch.Tensor = model(**batch, use_cache=False).logits
    if not bool(torch.isfinite(found).all()):
        raise ValueError("its logits are not finite at this size")
    return found


def first_line(error: Exception) -> str:
    """The first line of a message, cut to a table's width."""
    return next(iter(str(error).strip().splitlines()), "")[:160]
