"""Suspicious weights and tokenizers of an offer, found before private data is used.

An offer may be legal and still be made to read the data: a *trap* neuron fires on one token alone,
so whether a delta moved it says whether the token stood in the data. These checks look at the first
thing such a neuron needs: what the feed-forward parts of the adapter hand on for single tokens. A
trap built on states of several tokens passes them. The sure defence is differentially private
tuning.

In a trained model a unit is never quite silent. Over tokens of bookling-31m, SmolLM2-135M,
Gemma-3-270M and Qwen2.5-Coder-0.5B no unit was weaker than 8e-4 of its own peak on all but a few
tokens, and none peaked below 3e-3 of its layer's median peak. The limits here are below that.
Units of a model with ReLU, such as OPT, are silent on most tokens by nature (Voita et al., arXiv
2309.04827), so a trap looks like any of them. They are not judged, and :func:`not_judged` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.exchange.offer import Offer
from offsite.model.blocks import block_config, get_blocks
from offsite.model.layers import is_attention
from offsite.model.replay import forward
from offsite.tasks.text.tokens import encode

PROBE = "The quick brown fox met 12 others; they said 'no' in Zurich, on 3 May. x_1 = f(y)\n" * 8
MAX_TOKENS = 2048
FEW = 0.002  # share of the vocabulary on which a trap neuron fires
SILENT = 3e-4  # of a unit's own peak: weaker is silent
DEAD = 1e-4  # of the median peak of a layer's units: weaker never fires
EXPANSION = 4.0  # tokens a character


@dataclass(frozen=True)
class Finding:
    """One odd thing: where, how much of it, and what it can mean. ``count`` is 0 where all is well.

    ``share`` is ``count`` over everything looked at.
    """

    what: str
    where: str
    count: int
    share: float
    meaning: str


def check_offer(offer: Offer) -> list[Finding]:
    """Look at the adapter's feed-forward units and at the tokenizer; finds nothing on usual models.

    Every token of the vocabulary (2048 of them at most, evenly chosen) is put into the model alone.
    """
    judged = not_judged(offer) is None
    found = list(unit_findings(offer.model, offer.manifest.adapter)) if judged else []
    if hasattr(offer.processor, "get_vocab"):
        found += tokenizer_findings(offer.processor)
    return found


def not_judged(offer: Offer) -> str | None:
    """Why the units of an offer were not looked at; None where they were."""
    if table_of(offer.model) is None:
        return "the feed-forward units, because this model does not read tokens"
    if rectified(offer.model):
        return "the feed-forward units, because those with ReLU are silent on most tokens anyway"
    return None


def table_of(model: Any) -> nn.Embedding | None:
    """The embeddings of a model's tokens; None for one that reads pictures."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return table if isinstance(table, nn.Embedding) else None


def units(model: nn.Module, adapter: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The layers of adapter blocks whose inputs are units: those that narrow states again."""
    for index in adapter:
        for name, module in get_blocks(model)[index].named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                sizes = tuple(module.weight.shape)
                inner, outer = sizes if isinstance(module, Conv1D) else sizes[::-1]
                if inner > outer and not is_attention(name):
                    yield f"block {index}, {name}", module


@torch.no_grad()
def unit_findings(model: Any, adapter: tuple[int, ...]) -> Iterator[Finding]:
    """Dead units and units of single tokens, per layer, where :func:`not_judged` has no reason."""
    table = model.get_input_embeddings()
    count = min(table.num_embeddings, MAX_TOKENS)
    tokens = torch.unique(torch.linspace(0, table.num_embeddings - 1, count).long())
    device = table.weight.device
    watched = dict(units(model, adapter))
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in watched}
    hooks = [
        module.register_forward_pre_hook(
            lambda _m, given, name=name: inputs[name].append(
                given[0].flatten(0, -2).float().abs().cpu()
            )
        )
        for name, module in watched.items()
    ]
    try:
        for part in tokens.split(256):
            forward(model.eval().base_model, {"input_ids": part[:, None].to(device)})
    finally:
        for hook in hooks:
            hook.remove()
    for name, parts in inputs.items():
        values = torch.cat(parts)  # (tokens, units): how strong each unit is
        few = max(3, int(FEW * len(values)))
        peak = values.max(0).values
        elsewhere = values.kthvalue(max(1, len(values) - few), dim=0).values
        dead = peak <= DEAD * peak.median()
        alone = ~dead & (elsewhere <= SILENT * peak)
        yield Finding(
            "units that fire on single tokens", name, int(alone.sum()), float(alone.float().mean()),
            "a delta can say which of these tokens stood in the data",
        )  # fmt: skip
        yield Finding(
            "units that no single token reaches", name, int(dead.sum()), float(dead.float().mean()),
            "they may wait for a certain combination of tokens",
        )  # fmt: skip


def rectified(model: Any) -> bool:
    """Whether a model's units are exactly zero on one side, as those of OPT are."""
    config = block_config(model)
    names = [getattr(config, key, "") for key in ("activation_function", "hidden_act")]
    return any("relu" in str(name) for name in names)


def tokenizer_findings(processor: Any) -> Iterator[Finding]:
    """Text that grows: more tokens than characters cost time and can carry marks."""
    tokens = len(encode(processor, PROBE))
    rate = tokens / len(PROBE)
    yield Finding(
        "tokens a character", "tokenizer", int(rate > EXPANSION), rate,
        "the tokenizer makes text longer, so a small file can take hours",
    )  # fmt: skip
