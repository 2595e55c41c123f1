"""Put trained vectors before the embedded tokens of a language model.

Hooks on the model's own forward, so ``generate``, caches, left padding and gradient checkpointing
stay the family's. The vectors take positions 0 .. n-1 and the tokens follow; logits of the vectors
are cut off again, so losses and metrics see what they gave. The vectors come before any padding,
as in peft, so where attention has a sliding window, padding uses the window up; and packed rows
longer than the window are attended to as if there were none. Caches are dynamic ones only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.blocks import block_config


class PromptModule(nn.Module):
    """Gives the vectors, (n, width) or (batch, n, width), to put before every row of tokens.

    Its two hooks keep, from one forward to its end, how many vectors were added and how many tokens
    there were.
    """

    added = tokens = 0

    def before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Extend embeddings, mask, positions and labels; later steps have the vectors cached."""
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        positions, labels = kwargs.get("position_ids"), kwargs.get("labels")
        vectors = self()
        count = vectors.shape[-2]
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
            raise OffsiteError(
                "A model with a prompt takes masks of shape (batch, length) only; leave out "
                "cache_implementation, as only a dynamic cache has them."
            )
        if mask is not None:
            kwargs["attention_mask"] = nn.functional.pad(mask, (count, 0), value=1)
        if positions is not None:
            kwargs["position_ids"] = positions + count
        self.added = 0
        if cache is not None and cache.get_seq_length():
            return (), kwargs
        tokens = kwargs.pop("input_ids", None)
        embedded = kwargs.get("inputs_embeds")
        embedded = model.get_input_embeddings()(tokens) if embedded is None else embedded
        self.tokens = embedded.shape[1]
        check_length(model, count + embedded.shape[1])
        vectors = vectors.to(embedded).expand(len(embedded), -1, -1)
        kwargs["inputs_embeds"] = torch.cat((vectors, embedded), 1)
        if positions is not None:
            first = torch.arange(count, device=positions.device).expand(len(positions), -1)
            kwargs["position_ids"] = torch.cat((first, positions + count), 1)
            if mask is None and (positions[:, 1:] == 0).any():
                kwargs["attention_mask"] = packed_mask(model, positions, count, embedded.dtype)
        if labels is not None:
            kwargs["labels"] = nn.functional.pad(labels, (count, 0), value=-100)
        self.added = count
        return (), kwargs

    def after(self, model: nn.Module, inputs: Any, output: Any) -> Any:
        """Cut the logits of the vectors off, where logits of all positions were asked for."""
        logits = getattr(output, "logits", None)
        if self.added and logits is not None and logits.shape[1] > self.tokens:
            output.logits = logits[:, logits.shape[1] - self.tokens :]
        return output


def check_takes_prompt(model: nn.Module) -> None:
    """Refuse what cannot take a prompt.

    Raises:
        OffsiteError: not a language model, or one that has a prompt already.
    """
    if getattr(model, "main_input_name", None) != "input_ids" or not hasattr(model, "generate"):
        raise OffsiteError(
            f"A prompt needs a language model, but this is a {type(model).__name__}; use lora."
        )
    if hasattr(model, "prompt"):
        raise OffsiteError("The model has a prompt already; detach it before adding another.")


def add_prompt(model: nn.Module, prompt: PromptModule) -> Callable[[], None]:
    """Put a prompt before every row of tokens; the function that is returned removes it."""
    model.add_module("prompt", prompt)
    handles = (
        model.register_forward_pre_hook(prompt.before, with_kwargs=True),
        model.register_forward_hook(prompt.after),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()
        del model.prompt

    return remove


def packed_mask(
    model: nn.Module, positions: torch.Tensor, count: int, dtype: torch.dtype
) -> torch.Tensor:
    """For rows of several packed examples: each sees the prompt and itself, causally.

    Positions that restart at zero begin an example, as in transformers.
    """
    example = nn.functional.pad((positions == 0).cumsum(1), (count, 0))
    seen = (example[:, :, None] == example[:, None, :]) | (example == 0)[:, None, :]
    seen = seen.tril()[:, None]
    if block_config(model)._attn_implementation == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )
    return seen


def check_length(model: nn.Module, length: int) -> None:
    """Refuse rows that no longer fit the model's positions."""
    limit = getattr(block_config(model), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise OffsiteError(
            f"The prompt and a row take {length} positions, but the model has {limit}; use a "
            "shorter prompt or a smaller max_length."
        )
