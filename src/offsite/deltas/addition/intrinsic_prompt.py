"""A prompt in the space that several public tasks share (IPT; Qin et al., arXiv 2110.07867)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.deltas.addition.prompt import Prompt
from offsite.deltas.addition.prompting import add_prompt, check_takes_prompt, remove_prompt
from offsite.deltas.specification.own_numbers import OwnNumbers
from offsite.errors import OffsiteError
from offsite.exchange.prompt_decoder import PromptDecoder, decoder_of
from offsite.model.blocks import freeze


class DecodedPrompt(nn.Module):
    """The prompt of one vector of numbers, zero at the start, through a frozen decoder."""

    def __init__(self, decoder: PromptDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.z = nn.Parameter(torch.zeros(decoder.dim, device=decoder.inner.device))

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.decoder(self.z)
        return result


@dataclass(frozen=True)
class IntrinsicPrompt(OwnNumbers):
    """Tune the few numbers that the owner's prompt decoder turns into a prompt.

    What travels: ``intrinsic_prompt`` (dim,) float32, 250 numbers by default of the decoder. Needs
    a model or an offer with a decoder (:func:`offsite.learn_decoder`).
    Changes the output from the start, to that of the tasks' common prompt. Does not merge; the
    owner may serve what it decodes to as a plain prompt.
    """

    kind: ClassVar[str] = "intrinsic_prompt"
    place: ClassVar[str] = "prompt"
    lr: ClassVar[float] = 5e-2
    when: ClassVar[str] = "a kilobyte in all, where the owner's decoder knows tasks like yours"

    def attach(self, model: Any, blocks: Sequence[int]) -> nn.Module:
        check_takes_prompt(model)
        decoder = decoder_of(model)
        if decoder is None:
            raise OffsiteError(
                "An intrinsic prompt needs the prompt decoder of the model's owner, and there is "
                "none here; use prompt, or ask the owner for an offer with a decoder."
            )
        freeze(model)
        add_prompt(model, DecodedPrompt(decoder))
        return model  # type: ignore[no-any-return]

    def numbers(self, model: Any) -> dict[str, nn.Parameter]:
        return {"intrinsic_prompt": model.prompt.z}

    def decoded(self, model: Any) -> tuple[Prompt, dict[str, torch.Tensor]]:
        """The same prompt as a plain one, which needs no decoder: its method and its numbers."""
        vectors = model.prompt().detach()
        return Prompt(length=len(vectors)), {"prompt_embeddings": vectors}

    def detach(self, model: nn.Module) -> nn.Module:
        remove_prompt(model)
        return model
