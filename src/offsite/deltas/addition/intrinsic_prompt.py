"""A prompt in the space that several public tasks share (IPT; Qin et al., arXiv 2110.07867)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from offsite.deltas.addition.prompt import Prompt, prompt_config
from offsite.deltas.addition.prompting import PromptModule, add_prompt, check_takes_prompt
from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.errors import OffsiteError
from offsite.exchange.prompt_decoder import decode
from offsite.exchange.side import SideModule, side_modules
from offsite.model.blocks import freeze


class DecodedPrompt(PromptModule):
    """The prompt of one trained vector, zero at the start, through a frozen decoder."""

    def __init__(self, decoder: SideModule) -> None:
        super().__init__()
        self.decoder = decoder
        inner = decoder.get_buffer("inner")
        self.z = nn.Parameter(torch.zeros(inner.shape[1], device=inner.device))

    def forward(self) -> torch.Tensor:
        return decode(self.z, **self.decoder.tensors())


@dataclass(frozen=True)
class IntrinsicPrompt(Method):
    """Tune the few parameters that the owner's prompt decoder turns into a prompt.

    The delta holds ``intrinsic_prompt`` (dim,) float32, 250 parameters by default of the decoder.
    Needs a model or an offer with a decoder (:func:`offsite.learn_decoder`). Changes the output
    from the start, to that of the tasks' common prompt. Does not merge; the owner may serve the
    decoded prompt as a plain prompt.
    """

    kind: ClassVar[str] = "intrinsic_prompt"
    place: ClassVar[str] = "prompt"
    side: ClassVar[str] = "prompt_decoder"
    lr: ClassVar[float] = 5e-2
    when: ClassVar[str] = "a kilobyte in all, where the owner's decoder knows tasks like yours"

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        check_takes_prompt(model)
        decoder = side_modules(model).get(self.side)
        if decoder is None:
            raise OffsiteError(
                "An intrinsic prompt needs the prompt decoder of the model's owner, and there is "
                "none here; use prompt, or ask the owner for an offer with a decoder."
            )
        freeze(model)
        return AttachedIntrinsicPrompt(self, model, DecodedPrompt(decoder))


class AttachedIntrinsicPrompt(AttachedParameters):
    """An intrinsic prompt, which is served as the plain prompt that it decodes to."""

    def __init__(self, method: Method, model: nn.Module, prompt: DecodedPrompt) -> None:
        undo = add_prompt(model, prompt)
        super().__init__(method, model, {"intrinsic_prompt": prompt.z}, undo=undo)
        self.prompt = prompt

    def served(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[Method, dict[str, torch.Tensor], str]:
        vectors = self.prompt().detach()
        config = prompt_config(self.model, *vectors.shape)
        return Prompt(length=len(vectors)), {"prompt_embeddings": vectors}, config
