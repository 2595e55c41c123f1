"""A prompt in the space that several public tasks share (IPT; Qin et al., arXiv 2110.07867)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from offsite.blocks import freeze
from offsite.config import require
from offsite.deltas.method import cannot_merge
from offsite.deltas.prompting import add_prompt, check_takes_prompt, remove_prompt
from offsite.errors import OffsiteError
from offsite.tasks.task import Task
from offsite.tensors import TensorEntry, describe
from offsite.train import TrainOptions, train

TENSORS = ("inner", "inner_bias", "outer", "outer_bias")


class PromptDecoder(nn.Module):
    """``outer tanh(inner z + inner_bias) + outer_bias``: (..., dim) to (..., length, width).

    Its tensors are buffers that no checkpoint of the model contains: ``inner`` (hidden, dim),
    ``outer`` (length, width, hidden) and their biases.
    """

    inner: torch.Tensor
    inner_bias: torch.Tensor
    outer: torch.Tensor
    outer_bias: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name in TENSORS:
            self.register_buffer(name, tensors[name].detach().float(), persistent=False)

    @property
    def dim(self) -> int:
        """How many numbers make a prompt."""
        return self.inner.shape[1]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return decode(z, self.inner, self.inner_bias, self.outer, self.outer_bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What an offer ships of it."""
        return {name: self.get_buffer(name) for name in TENSORS}


def decode(
    z: torch.Tensor,
    inner: torch.Tensor,
    inner_bias: torch.Tensor,
    outer: torch.Tensor,
    outer_bias: torch.Tensor,
) -> torch.Tensor:
    """The arithmetic of :class:`PromptDecoder`."""
    hidden = torch.tanh(z.float() @ inner.T + inner_bias)
    return torch.einsum("...h,lwh->...lw", hidden, outer) + outer_bias


def give_decoder(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put a decoder beside a model's weights, where :class:`IntrinsicPrompt` looks for it.

    Raises:
        OffsiteError: tensors that do not form a decoder for this model.
    """
    width = model.get_input_embeddings().weight.shape[1]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    inner, outer = shapes.get("inner", ()), shapes.get("outer", ())
    fits = (
        set(shapes) == set(TENSORS)
        and len(inner) == 2
        and len(outer) == 3
        and outer[1:] == (width, inner[0])
        and shapes["inner_bias"] == inner[:1]
        and shapes["outer_bias"] == outer[:2]
    )
    require(fits, f"These tensors are no prompt decoder for embeddings of width {width}.")
    device = model.get_input_embeddings().weight.device
    model.prompt_decoder = PromptDecoder(tensors).to(device)


class TaskPrompts(nn.Module):
    """One intrinsic vector for each public task and the decoder they share, all trainable."""

    def __init__(self, tasks: int, dim: int, hidden: int, start: torch.Tensor) -> None:
        super().__init__()
        like, scale = start.float(), start.float().std()
        length, width = start.shape
        self.z = nn.Parameter(torch.randn(tasks, dim, device=like.device))
        self.inner = nn.Parameter(torch.randn(hidden, dim, device=like.device) * dim**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(hidden, device=like.device))
        outer = torch.randn(length, width, hidden, device=like.device)
        self.outer = nn.Parameter(outer * scale * hidden**-0.5)
        self.outer_bias = nn.Parameter(like.clone())
        self.chosen = torch.zeros(1, dtype=torch.long)

    def forward(self) -> torch.Tensor:
        z = self.z[self.chosen.to(self.z.device)]
        return decode(z, self.inner, self.inner_bias, self.outer, self.outer_bias)


def learn_decoder(
    model: Any,
    tasks: Sequence[Sequence[Any]],
    task: Task,
    *,
    length: int = 16,
    dim: int = 250,
    hidden: int = 64,
    options: TrainOptions,
    device: torch.device,
) -> None:
    """Learn a prompt decoder on several public tasks and put it beside the model.

    The owner's step, on the full model, before the offer is made. Every task gets a vector of
    ``dim`` numbers, decoded by one network into a prompt of ``length`` vectors; all are trained
    together on the tasks' own loss. The paper first tunes a prompt for each task and then fits an
    auto-encoder to them and the loss; ours needs neither the prompts nor the encoder.

    Args:
        tasks: rows of each public task, as ``task`` made them.
        options: ``lr`` should be given; 3e-3 is fair.

    Raises:
        OffsiteError: fewer than two tasks, or no language model.
    """
    require(len(tasks) >= 2, f"A decoder is learnt on two or more tasks, not {len(tasks)}.")
    check_takes_prompt(model)
    freeze(model)
    table = model.get_input_embeddings()
    start = table(torch.randint(0, len(table.weight), (length,), device=table.weight.device))
    prompts = TaskPrompts(len(tasks), dim, hidden, start.detach())
    add_prompt(model, prompts)

    def collate(rows: Sequence[tuple[int, Any]]) -> dict[str, torch.Tensor]:
        return {"chosen": torch.tensor([k for k, _ in rows]), **task.collate([r for _, r in rows])}

    def loss(
        model: nn.Module, batch: Mapping[str, Any], items: torch.Tensor | None = None
    ) -> torch.Tensor:
        prompts.chosen = batch["chosen"]
        rest = {key: value for key, value in batch.items() if key != "chosen"}
        return task.loss(model, rest, items)

    rows: Any = [(index, row) for index, data in enumerate(tasks) for row in data]
    try:
        train(
            model, rows, loss=loss, collate=collate, options=options, device=device,
            text="learning a prompt decoder",
        )  # fmt: skip
    finally:
        remove_prompt(model)
    give_decoder(model, {name: getattr(prompts, name).detach() for name in TENSORS})


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
class IntrinsicPrompt:
    """Tune the few numbers that the owner's prompt decoder turns into a prompt.

    What travels: ``intrinsic_prompt`` (dim,) float32, 250 numbers by default of the decoder. Needs
    a model or an offer with a decoder (:func:`learn_decoder`). Changes the output from the start,
    to that of the tasks' common prompt. Does not merge.
    """

    kind: ClassVar[str] = "intrinsic_prompt"
    merges: ClassVar[bool] = False
    place: ClassVar[str] = "prompt"
    lr: ClassVar[float] = 5e-2
    when: ClassVar[str] = "a kilobyte in all, where the owner has learnt a prompt decoder"

    def attach(self, model: Any, blocks: Sequence[int]) -> nn.Module:
        check_takes_prompt(model)
        if not isinstance(getattr(model, "prompt_decoder", None), PromptDecoder):
            raise OffsiteError(
                "An intrinsic prompt needs the prompt decoder of the model's owner, and there is "
                "none here; use prompt, or ask the owner for an offer with a decoder."
            )
        freeze(model)
        add_prompt(model, DecodedPrompt(model.prompt_decoder))
        return model  # type: ignore[no-any-return]

    def tensors(self, model: Any) -> dict[str, torch.Tensor]:
        return {"intrinsic_prompt": model.prompt.z.detach()}

    def expected(
        self, model: nn.Module, given: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        return describe(self.tensors(model))

    def load(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            model.prompt.z.copy_(tensors["intrinsic_prompt"])

    def merge(self, model: nn.Module) -> nn.Module:
        raise cannot_merge(self)

    def detach(self, model: nn.Module) -> nn.Module:
        remove_prompt(model)
        return model

    def peft_config(self, model: nn.Module) -> str | None:
        return None
