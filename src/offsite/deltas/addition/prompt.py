"""Trained vectors before the input, in peft's format (prompt tuning; arXiv 2104.08691)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.deltas.addition.prompting import PromptModule, add_prompt, check_takes_prompt
from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.deltas.reparameterisation.through_peft import plain
from offsite.errors import require
from offsite.model.blocks import block_config, freeze


class SoftPrompt(PromptModule):
    """``length`` vectors, at first the embeddings of as many random tokens."""

    def __init__(self, table: nn.Module, length: int) -> None:
        super().__init__()
        weight = table.weight
        assert isinstance(weight, torch.Tensor)
        tokens = torch.randint(0, len(weight), (length,), device=weight.device)
        with torch.no_grad():
            self.embedding = nn.Parameter(table(tokens).float())

    def forward(self) -> torch.Tensor:
        return self.embedding


@dataclass(frozen=True)
class Prompt(Method):
    """Put ``length`` trained vectors before the tokens; the blocks do not change.

    The delta holds ``prompt_embeddings`` (length, width) float32, as a peft prompt-tuning adapter.
    Changes the output from the start, because a model ignores no prompt. Does not merge. We add the
    vectors with hooks and not with peft's forward, which computes the same but returns the prompt's
    logits too and loses the positions of packed examples.

    Attributes:
        length: how many vectors.
    """

    length: int = 16

    kind: ClassVar[str] = "prompt"
    place: ClassVar[str] = "prompt"
    lr: ClassVar[float] = 3e-2
    when: ClassVar[str] = "one small matrix for a large model; slow to converge on a small one"

    def __post_init__(self) -> None:
        require(self.length >= 1, f"A prompt needs a length of at least 1, not {self.length}.")

    def install(self, model: Any, blocks: Sequence[int]) -> Attached:
        check_takes_prompt(model)
        freeze(model)
        prompt = SoftPrompt(model.get_input_embeddings(), self.length)
        remove = add_prompt(model, prompt)
        return AttachedPrompt(self, model, {"prompt_embeddings": prompt.embedding}, undo=remove)


class AttachedPrompt(AttachedParameters):
    """A prompt, which is a peft adapter as well."""

    def peft_config(self) -> str:
        return prompt_config(self.model, *self.named["prompt_embeddings"].shape)


def prompt_config(model: nn.Module, length: int, width: int) -> str:
    """The text of ``adapter_config.json`` for a prompt of ``length`` vectors before a model."""
    from peft import PromptTuningConfig

    config = block_config(model)
    settings = PromptTuningConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        num_virtual_tokens=length,
        token_dim=width,
        num_transformer_submodules=1,
        num_attention_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
    )
    return json.dumps(settings.to_dict(), indent=1, default=plain, sort_keys=True) + "\n"
