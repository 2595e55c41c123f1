"""Trained keys and values in each adapter block's attention (prefix tuning; 2101.00190)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.errors import OffsiteError, require
from offsite.model.blocks import freeze, get_blocks

NAME = "offsite_prefix"


class KeyValues(nn.Module):
    """Keys and values (key heads, length, head width), and where gated a gate (query heads,)."""

    def __init__(self, attention: Any, length: int, gated: bool) -> None:
        super().__init__()
        config, like = attention.config, next(attention.parameters())
        heads = config.num_attention_heads
        width = getattr(attention, "head_dim", None) or config.hidden_size // heads
        shape = (getattr(config, "num_key_value_heads", None) or heads, length, width)
        options = {"device": like.device, "dtype": like.dtype}
        self.key = nn.Parameter(torch.randn(shape, **options) * width**-0.5)
        self.value = nn.Parameter(torch.randn(shape, **options) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(heads, **options)) if gated else None
        self.base = config  # the configuration to restore, which names the attention to run


def prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The function behind transformers' ``AttentionInterface`` for a module with a prefix."""
    prefix: KeyValues = module.prefix
    attend = base_attention(module, prefix.base._attn_implementation)
    if prefix.gate is None:
        batch, length = key.shape[0], prefix.key.shape[1]
        attention_mask = widen(attention_mask, query, key, length, module.is_causal)
        kwargs.pop("is_causal", None)
        key = torch.cat((prefix.key.to(key.dtype).expand(batch, -1, -1, -1), key), 2)
        value = torch.cat((prefix.value.to(value.dtype).expand(batch, -1, -1, -1), value), 2)
        output, weights = attend(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output, weights
    output, weights = attend(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    repeat = query.shape[1] // prefix.key.shape[0]
    keys = prefix.key.repeat_interleave(repeat, 0).to(query.dtype)
    values = prefix.value.repeat_interleave(repeat, 0).to(query.dtype)
    scores = query @ keys.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
    extra = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    extra = extra * prefix.gate.to(query.dtype)[:, None, None]
    return output + extra.transpose(1, 2).reshape(output.shape), weights


def base_attention(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function the module would run without a prefix."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return found


def widen(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, length: int, causal: bool
) -> torch.Tensor | None:
    """A mask over (batch, heads, queries, keys) in which every query sees ``length`` more keys."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        if not causal or queries == 1:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()[None, None]
    shown = 1.0 if mask.dtype == torch.bool else 0.0
    return nn.functional.pad(mask, (length, 0), value=shown)


@dataclass(frozen=True)
class Prefix(Method):
    """Keys and values of ``length`` further positions in the attention of each adapter block.

    The delta holds ``key`` and ``value`` (key heads, length, head width) of each block, and its
    ``gate`` (query heads,). With ``gated`` the prefix is attended to on its own and added through a
    gate that is zero at the start (LLaMA-Adapter, arXiv 2303.16199, without its tanh): an untrained
    delta changes nothing. Without it, keys and values are prepended as in the paper, which changes
    the model from the first step. Unlike peft's it belongs to single blocks, so it can be plugged.
    The prefix has no position and no cache, and padding does not mask it. We train it directly,
    without the paper's perceptron. Does not merge. Needs a family that calls transformers'
    ``AttentionInterface``: GPT-2, OPT, LLaMA, Qwen, Gemma, vision transformers, not BLOOM.

    Attributes:
        length: how many keys and values for each block.
        gated: add through a zero-start gate instead of prepending.
    """

    length: int = 16
    gated: bool = True

    kind: ClassVar[str] = "prefix"
    place: ClassVar[str] = "prefix"
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "steer attention with a few thousand parameters, weights untouched"

    def __post_init__(self) -> None:
        require(self.length >= 1, f"A prefix needs a length of at least 1, not {self.length}.")

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        from transformers.modeling_utils import AttentionInterface

        freeze(model)
        attentions = [attention_of(get_blocks(model)[index], self.gated) for index in blocks]
        AttentionInterface.register(NAME, prefix_attention)
        for attention in attentions:
            attention.prefix = KeyValues(attention, self.length, self.gated)
            attention.config = copy.copy(attention.config)  # of this block alone
            attention.config._attn_implementation = NAME

        def undo() -> None:
            for attention in attentions:
                attention.config = attention.prefix.base
                del attention.prefix

        return AttachedParameters(self, model, undo=undo)


def attention_of(block: nn.Module, gated: bool) -> Any:
    """The attention of a block, if it runs through transformers' ``AttentionInterface``.

    Raises:
        OffsiteError: it does not, or its implementation cannot take prepended keys.
    """
    found = [m for m in block.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
    hosts = [vars(sys.modules[type(module).__module__]) for module in found]
    compressed = any(hasattr(module, "kv_lora_rank") for module in found)  # DeepSeek's attention
    if len(found) != 1 or "ALL_ATTENTION_FUNCTIONS" not in hosts[0] or compressed:  # GPT-J, Falcon
        raise OffsiteError(
            f"The attention of {type(block).__name__} does not run through transformers' "
            "AttentionInterface with keys and values of one width, so it cannot take a prefix; use "
            "lora or bottleneck instead."
        )
    name = found[0].config._attn_implementation  # type: ignore[union-attr]
    require(
        gated or name in ("sdpa", "eager"),
        f"Prepended keys need attn_implementation sdpa or eager, not {name}; use gated=true.",
    )
    return found[0]
