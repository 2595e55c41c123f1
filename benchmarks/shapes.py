"""Models of true shapes and random weights, whose cost is that of the models themselves."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from offsite.model.blocks import get_blocks
from offsite.model.checkpoint import load_model
from offsite.training.devices import pick_device

SHAPES: dict[str, tuple[str, dict[str, Any], int]] = {  # configuration, blocks kept in the middle
    "gpt2-xl": ("GPT2Config", {"n_embd": 1600, "n_layer": 48, "n_head": 25}, 16),
    "opt-1.3b": (
        "OPTConfig",
        {"hidden_size": 2048, "num_hidden_layers": 24, "ffn_dim": 8192, "num_attention_heads": 32},
        8,
    ),
    "gemma-3-270m": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262144, "hidden_size": 640, "num_hidden_layers": 18, "head_dim": 256,
            "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1,
        },
        8,
    ),
    "qwen2.5-0.5b": (
        "Qwen2Config",
        {
            "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24,
            "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        8,
    ),
    "llama-7b": (
        "LlamaConfig",
        {
            "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
            "intermediate_size": 11008, "num_attention_heads": 32, "dtype": "bfloat16",
        },
        28,
    ),
}  # fmt: skip


def full_model(name: str) -> tuple[Any, int]:
    """A full model on the CPU in float32, and how many middle blocks its emulator keeps."""
    if name not in SHAPES:
        model = load_model(name, dtype=torch.float32)
        return model, max(1, (len(get_blocks(model)) - 4) * 2 // 5)
    kind, options, keep = SHAPES[name]
    torch.manual_seed(0)
    with pick_device():
        config = getattr(transformers, kind)(use_cache=False, **options)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    return model.eval().cpu(), keep
