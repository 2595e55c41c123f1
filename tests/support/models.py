"""Tiny random models of every family, for language and for pictures."""

from __future__ import annotations

from typing import Any

import torch
import transformers

TEXT = "the cat sat on the mat and the dog sat on the log while a bird sang in a tree. " * 40
VOCAB = 300
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
WIDTH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
_HEADS: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8}
LANGUAGE = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 6, "n_head": 2, "n_positions": 128}),
    "opt": ("OPTConfig", dict(WIDTH, ffn_dim=32, word_embed_proj_dim=16)),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 6, "n_head": 2}),
    "llama": ("LlamaConfig", dict(WIDTH, num_key_value_heads=1, attention_bias=True)),
    "mistral": ("MistralConfig", dict(WIDTH, num_key_value_heads=1, sliding_window=8)),
    "qwen2": ("Qwen2Config", dict(WIDTH, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", dict(WIDTH, **_HEADS)),
    "gemma2": ("Gemma2Config", dict(WIDTH, **_HEADS, sliding_window=8)),
    "gemma3": ("Gemma3TextConfig", dict(WIDTH, **_HEADS, sliding_window=8)),
    "gpt_neox": ("GPTNeoXConfig", dict(WIDTH)),
}
SIZE = 16
PICTURE_SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 4,
}
TOWERS = {"clip": "CLIP", "siglip": "Siglip"}
PLAIN = {"vit": "ViT", "beit": "Beit", "dinov2": "Dinov2"}
EXTRA = {"beit": {"use_relative_position_bias": True}}  # as in its published checkpoints
VISION = [*PLAIN, *TOWERS]


def jitter(model: Any) -> Any:
    """Noise on every parameter: zero biases and unit norms hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def language_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random causal language model of a family, in evaluation mode."""
    name, options = LANGUAGE[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**COMMON, **options, **changes})
    return jitter(transformers.AutoModelForCausalLM.from_config(config))


def _shape(family: str) -> dict[str, Any]:
    """The configuration of a tiny model of a family."""
    return {**PICTURE_SHAPE, **EXTRA.get(family, {})}


def classifier(family: str, labels: int = 3, seed: int = 0) -> Any:
    """A tiny random image classifier of a family, in evaluation mode."""
    torch.manual_seed(seed)
    if family in TOWERS:
        config = getattr(transformers, f"{TOWERS[family]}Config")(vision_config=PICTURE_SHAPE)
        config.num_labels = labels
    else:
        config = getattr(transformers, f"{PLAIN[family]}Config")(
            **_shape(family), num_labels=labels
        )
    return jitter(transformers.AutoModelForImageClassification.from_config(config))


def backbone(family: str, seed: int = 0) -> Any:
    """A tiny random backbone of a family, without a head."""
    torch.manual_seed(seed)
    if family in TOWERS:
        name = f"{TOWERS[family]}Vision"
        config = getattr(transformers, f"{name}Config")(**PICTURE_SHAPE)
        return jitter(getattr(transformers, f"{name}Model")(config))
    config = getattr(transformers, f"{PLAIN[family]}Config")(**_shape(family))
    return jitter(transformers.AutoModel.from_config(config))


def vision_model(family: str, seed: int = 0) -> Any:
    """A tiny random image model of a family: a classifier, or the tower where pictures have one."""
    return backbone(family, seed) if family in TOWERS else classifier(family, seed=seed)


def inputs_for(model: Any) -> dict[str, torch.Tensor]:
    """A small fixed batch for a language or vision model."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(1, VOCAB, (2, 12), generator=generator)}


def output_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits, or the last hidden state of a backbone."""
    with torch.no_grad():
        output = model(**batch)
    given = output.logits if hasattr(output, "logits") else output.last_hidden_state
    assert isinstance(given, torch.Tensor)
    return given


def plain_divergence(
    found: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor | None = None
) -> torch.Tensor:
    """``mean(sum(p log(p / q)))`` of ``wanted`` p and ``found`` q, given as logits."""
    if real is not None:
        found, wanted = found[real], wanted[real]
    told, said = wanted.float().log_softmax(-1), found.float().log_softmax(-1)
    return (told.exp() * (told - said)).sum(-1).mean()
