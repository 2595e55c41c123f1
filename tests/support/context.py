"""A tiny model, its split and calibration rows: what every test of a step starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from offsite.compress.step import Context, compress
from offsite.exchange.offer import Offer
from offsite.model.split import join, make_split
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from tests.support.models import VOCAB, inputs_for, language_model, output_of

# fused qkv, Conv1D, tuples, gates, biases, sliding and full attention
FAMILIES = ["gpt2", "opt", "bloom", "llama", "qwen2", "gemma3", "gpt_neox"]


def rows(count: int = 24, length: int = 12) -> Any:
    """Random windows of tokens."""
    generator = torch.Generator().manual_seed(5)
    windows = torch.randint(1, VOCAB, (count, length), generator=generator)
    return [{"input_ids": window, "labels": window} for window in windows]


def world(family: str = "llama", adapter: Any = (0, -1), **changes: Any) -> Context:
    """A context around a tiny random model of six blocks."""
    model = language_model(family, **changes).requires_grad_(False)
    total = model.config.num_hidden_layers
    split = make_split(adapter if callable(adapter) else [i % total for i in adapter], total)
    return Context(model, split, CausalText(), rows(), seed=3)


def emulator(context: Context, recipe: Any) -> Any:
    """The joined emulator of a recipe."""
    return join(context.model, context.split, compress(recipe, context))[0].eval()


def logits(model: Any) -> torch.Tensor:
    """Logits on the fixed batch."""
    return output_of(model, inputs_for(model))


def generate(model: Any, cache: bool) -> torch.Tensor:
    """Twelve greedy tokens, far enough to leave a sliding window of eight."""
    ids = inputs_for(model)["input_ids"]
    tokens: torch.Tensor = model.generate(
        ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=cache
    )
    return tokens


def through_disk(context: Context, recipe: Any, folder: Path) -> tuple[Offer, Offer]:
    """An offer as made and as loaded."""
    offer, _ = make_offer(
        context.model,
        adapter=context.split.adapter,
        recipe=recipe,
        data=context.data,
        seed=context.seed,
        device="cpu",
    )
    offer.save(folder)
    return offer, Offer.load(folder)
