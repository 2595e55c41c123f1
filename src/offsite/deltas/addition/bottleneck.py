"""Small trained layers inside the blocks (Houlsby, arXiv 1902.00751; Pfeiffer, 2005.00247)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from offsite.deltas.method import Attached, Method
from offsite.deltas.parameters import AttachedParameters
from offsite.deltas.targets import sublayer_outputs
from offsite.errors import require
from offsite.model.blocks import freeze, get_blocks
from offsite.model.layers import linear_spec


class DownUp(nn.Module):
    """``x + up(gelu(down(x)))``, ``up`` zero at the start; (..., hidden) in and out."""

    def __init__(self, hidden: int, size: int, like: torch.Tensor) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, size, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(size, hidden, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = x + self.up(nn.functional.gelu(self.down(x)))
        return output

    def hook(self, layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """The forward hook of the layer that it follows."""
        return self(output)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Bottleneck(Method):
    """A bottleneck behind attention and behind feed-forward of each adapter block.

    The delta holds ``down`` (size, hidden), ``up`` (hidden, size) and their biases. ``up`` is zero
    at first, so an untrained delta changes nothing. Does not merge. The module takes the output of
    a sub-layer, before dropout and residual, in every family (BLOOM adds the residual inside).

    Attributes:
        size: width of the bottleneck.
        style: ``houlsby``, two for each block, or ``pfeiffer``, one behind the feed-forward.
    """

    size: int = 16
    style: Literal["houlsby", "pfeiffer"] = "houlsby"

    kind: ClassVar[str] = "bottleneck"
    place: ClassVar[str] = "bottleneck"
    lr: ClassVar[float] = 3e-3
    when: ClassVar[str] = "to serve many tasks on one model, each as modules that come and go"

    def __post_init__(self) -> None:
        require(self.size >= 1, f"A bottleneck needs a size of at least 1, not {self.size}.")

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        freeze(model)
        added: list[tuple[nn.Module, RemovableHandle]] = []
        parts = ("attention", "mlp") if self.style == "houlsby" else ("mlp",)
        for index in blocks:
            outputs = sublayer_outputs(get_blocks(model)[index])
            for part in parts:
                layer = outputs[part]
                plain = getattr(layer, "base_layer", layer)
                spec = linear_spec(plain)
                assert spec is not None and isinstance(plain.weight, torch.Tensor)
                bottleneck = DownUp(spec.outputs, self.size, plain.weight)
                layer.add_module("bottleneck", bottleneck)
                added.append((layer, layer.register_forward_hook(bottleneck.hook)))

        def undo() -> None:
            for layer, handle in added:
                handle.remove()
                del layer.bottleneck

        return AttachedParameters(self, model, undo=undo)
