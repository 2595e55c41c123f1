"""Tiny random models of every family, and a tokenizer trained on the spot: no network, no files."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # figures here are of the CPU, wherever the tests run

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

torch.accelerator.current_accelerator = lambda *_, **__: None

Run = Callable[..., tuple[int, str, str]]

SHARED = Path(__file__).parents[2] / "shared"
TEXT = "the cat sat on the mat and the dog sat on the log while a bird sang in a tree. " * 40
VOCAB = 300
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_WIDTH: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
_HEADS: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8}
LANGUAGE = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 6, "n_head": 2, "n_positions": 128}),
    "opt": ("OPTConfig", dict(_WIDTH, ffn_dim=32, word_embed_proj_dim=16)),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 6, "n_head": 2}),
    "llama": ("LlamaConfig", dict(_WIDTH, num_key_value_heads=1, attention_bias=True)),
    "mistral": ("MistralConfig", dict(_WIDTH, num_key_value_heads=1, sliding_window=8)),
    "qwen2": ("Qwen2Config", dict(_WIDTH, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", dict(_WIDTH, **_HEADS)),
    "gemma2": ("Gemma2Config", dict(_WIDTH, **_HEADS, sliding_window=8)),
    "gemma3": ("Gemma3TextConfig", dict(_WIDTH, **_HEADS, sliding_window=8)),
    "gpt_neox": ("GPTNeoXConfig", dict(_WIDTH)),
}
VISION = {
    "vit": ("ViTConfig", "AutoModelForImageClassification", _VISION),
    "beit": ("BeitConfig", "AutoModelForImageClassification", _VISION),
    "dinov2": ("Dinov2Config", "AutoModelForImageClassification", _VISION),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", _VISION),
}


def language_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random causal language model of a family, in evaluation mode."""
    name, options = LANGUAGE[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**_COMMON, **options, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases and unit norms hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def vision_model(family: str, seed: int = 0) -> Any:
    """A tiny random image model of a family, in evaluation mode."""
    name, build, options = VISION[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**options)
    if build.startswith("Auto"):
        return getattr(transformers, build).from_config(config).eval()
    return getattr(transformers, build)(config).eval()


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
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of 300 entries with one end-of-text token, id 0."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer: Any) -> Callable[..., Path]:
    """Saves a tiny model with its tokenizer as a folder and returns the path."""

    def save(family: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / f"model-{family}"
        language_model(family, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text file to tune on."""
    path = tmp_path / "train.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/ with real models and data is not here")
    return SHARED


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; returns exit status, standard output and standard error."""
    from offsite.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["offsite", *map(str, words)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capfd.readouterr()

    return call
