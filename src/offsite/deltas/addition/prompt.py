"""Trained vectors before the input, in peft's format (prompt tuning; arXiv 2104.08691)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.codec import require
from offsite.deltas.addition.prompting import add_prompt, check_takes_prompt, remove_prompt
from offsite.deltas.reparameterisation.through_peft import plain
from offsite.deltas.specification.own_numbers import OwnNumbers
from offsite.model.blocks import block_config, freeze


class SoftPrompt(nn.Module):
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
class Prompt(OwnNumbers):
    """``length`` trained vectors before the tokens; no block is touched.

    What travels: ``prompt_embeddings`` (length, width) float32, as a peft prompt-tuning adapter.
    Changes the output from the start, as there is no prompt that a model ignores. Does not merge.
    The vectors run through hooks of ours instead of peft's forward (same arithmetic), which
    returns the prompt's logits too and forgets the positions of packed examples.

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

    def attach(self, model: Any, blocks: Sequence[int]) -> nn.Module:
        check_takes_prompt(model)
        freeze(model)
        add_prompt(model, SoftPrompt(model.get_input_embeddings(), self.length))
        return model  # type: ignore[no-any-return]

    def numbers(self, model: Any) -> dict[str, nn.Parameter]:
        return {"prompt_embeddings": model.prompt.embedding}

    def detach(self, model: nn.Module) -> nn.Module:
        remove_prompt(model)
        return model

    def peft_config(self, model: Any) -> str | None:
        from peft import PromptTuningConfig

        config = block_config(model)
        settings = PromptTuningConfig(
            task_type="CAUSAL_LM",
            inference_mode=True,
            num_virtual_tokens=self.length,
            token_dim=model.get_input_embeddings().weight.shape[1],
            num_transformer_submodules=1,
            num_attention_heads=config.num_attention_heads,
            num_layers=config.num_hidden_layers,
        )
        return json.dumps(settings.to_dict(), indent=1, default=plain, sort_keys=True) + "\n"
