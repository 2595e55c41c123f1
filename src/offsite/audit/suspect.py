"""What is odd about an offer, for the data owner to see before tuning on private data.

An offer may be legal and still be made to read the data: a *trap* neuron fires on one token alone,
so whether a delta moved it says whether the token stood in the data. These checks look at the first
thing such a neuron needs, single tokens at the first feed-forward layers; a trap built on states of
several tokens passes them. The sure defence is differentially private tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.exchange.offer import Offer
from offsite.model.blocks import get_blocks
from offsite.model.replay import forward

PROBE = "The quick brown fox met 12 others; they said 'no' in Zurich, on 3 May. x_1 = f(y)\n" * 8
MAX_TOKENS = 4096
FEW = 0.002  # share of the vocabulary on which a trap neuron fires
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

    Every token of the vocabulary (4096 of them at most, evenly chosen) is put into the model alone.
    """
    found = list(unit_findings(offer.model, offer.manifest.adapter))
    if hasattr(offer.processor, "get_vocab"):
        found += tokenizer_findings(offer.processor)
    return found


def units(model: nn.Module, adapter: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The layers of adapter blocks that widen states: the inner layers of feed-forward parts."""
    for index in adapter:
        for name, module in get_blocks(model)[index].named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                sizes = tuple(module.weight.shape)
                inner, outer = sizes if isinstance(module, Conv1D) else sizes[::-1]
                if outer > inner and "attn" not in name and "attention" not in name:
                    yield f"block {index}, {name}", module


@torch.no_grad()
def unit_findings(model: Any, adapter: tuple[int, ...]) -> Iterator[Finding]:
    """Dead units and units of single tokens, per layer."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if not isinstance(table, nn.Embedding):
        return
    count = min(table.num_embeddings, MAX_TOKENS)
    tokens = torch.unique(torch.linspace(0, table.num_embeddings - 1, count).long())
    device = table.weight.device
    watched = dict(units(model, adapter))
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in watched}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: outputs[name].append(out[:, 0].float().cpu())
        )
        for name, module in watched.items()
    ]
    try:
        for part in torch.split(tokens, 256):
            forward(model.eval(), {"input_ids": part[:, None].to(device)})
    finally:
        for hook in hooks:
            hook.remove()
    for name, parts in outputs.items():
        values = torch.cat(parts)  # (tokens, units), before the activation function
        spread = values.std(0).clamp_min(1e-6)
        firing = (values > 0).sum(0)
        few = max(3, int(FEW * len(values)))
        alone = (firing > 0) & (firing <= few) & (values.median(0).values < -4 * spread)
        alone |= (firing > 0) & (firing <= few) & (values.median(0).values < -10)
        dead = (firing == 0) & (values.max(0).values < -10)
        yield Finding(
            "units that fire on single tokens", name, int(alone.sum()), float(alone.float().mean()),
            "a delta can say which of these tokens stood in the data",
        )  # fmt: skip
        yield Finding(
            "units that no single token reaches", name, int(dead.sum()), float(dead.float().mean()),
            "they may wait for a certain combination of tokens",
        )  # fmt: skip


def tokenizer_findings(processor: Any) -> Iterator[Finding]:
    """Text that grows: more tokens than characters cost time and can carry marks."""
    tokens = len(processor(PROBE, add_special_tokens=False, verbose=False)["input_ids"])
    rate = tokens / len(PROBE)
    yield Finding(
        "tokens a character", "tokenizer", int(rate > EXPANSION), rate,
        "the tokenizer makes text longer, so a small file can take hours",
    )  # fmt: skip
