"""The model that transformers' Trainer sees: it returns a loss and saves only what trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from offsite.errors import OffsiteError

Loss = Callable[[nn.Module, Mapping[str, Any], torch.Tensor | None], torch.Tensor]


class Tunable(nn.Module):
    """Only the trainable tensors of a model are state; so checkpoints are small and may share.

    Blocks in which nothing trains compute as they do at evaluation, so dropout acts only in blocks
    that train. Where activations are computed again in the backward pass, all blocks are in
    training mode, because transformers asks for it.

    The Trainer asks for all parameters and sets the mode several times a step. Both are answered
    without walking through the modules, which took a third of a step's time in Python.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.config = getattr(model, "config", None)
        self.trained = [(n, p) for n, p in super().named_parameters() if p.requires_grad]
        self.frozen = [block for _, _, block in frozen_blocks(model)]
        self.recomputing = False
        self._set_mode(True)

    def forward(self, return_loss: bool = True, **batch: Any) -> dict[str, torch.Tensor]:
        # the Trainer evaluates a model without label names only if its forward names return_loss
        items = batch.pop("num_items_in_batch", None)
        return {"loss": self.loss(self.model, batch, items)}

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name; all of them are in modules below."""
        start = f"{prefix}." if prefix else ""
        yield from ((start + name, p) for name, p in self.trained) if recurse else ()

    def train(self, mode: bool = True) -> Tunable:
        """Set the mode of all modules, where it is another one."""
        return self if mode == self.training else self._set_mode(mode)

    def _set_mode(self, mode: bool) -> Tunable:
        super().train(mode)
        for block in () if self.recomputing else self.frozen:
            block.eval()
        return self

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: p.detach().clone() for name, p in self.named_trainable().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        own = self.named_trainable()
        if own.keys() != state_dict.keys():
            raise OffsiteError(
                "The saved checkpoint trains other tensors than this run; resume with the same "
                "offer, method and options, or start afresh without --resume."
            )
        with torch.no_grad():
            for name, value in state_dict.items():
                own[name].copy_(value)
        return nn.modules.module._IncompatibleKeys([], [])

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.model.gradient_checkpointing_enable(*args, **kwargs)  # type: ignore[operator]
        if hasattr(self.model, "enable_input_require_grads"):
            self.model.enable_input_require_grads()  # type: ignore[operator]
        self.recomputing = True
        self._set_mode(self.training)


def frozen_blocks(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """The blocks in which nothing trains, each with its parent module and its name."""
    return [
        (parent, name, block)
        for parent in model.modules()
        for name, block in parent.named_children()
        if isinstance(block, GradientCheckpointingLayer)
        and not any(p.requires_grad for p in block.parameters())
    ]
