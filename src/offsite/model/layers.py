"""The allow-list of layers that an emulator may hold besides the family's own.

An offer names them in its manifest by kind and size. The data owner's side builds them from this
file alone, so no code is ever sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from offsite.errors import OffsiteError
from offsite.model.packed import pack, packed_linear, unpack


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Size = Annotated[int, Field(ge=1, le=1_000_000)]


class HarmonizerSpec(_Spec):
    """A whole block replaced by ``x + up(relu(down(x)))``; ``tuple`` for families like BLOOM."""

    kind: Literal["harmonizer"] = "harmonizer"
    hidden: Size
    rank: Size
    tuple: bool = False


class LowRankSpec(_Spec):
    """A linear layer as the product of two thin ones."""

    kind: Literal["low_rank"] = "low_rank"
    inputs: Size
    outputs: Size
    rank: Size
    bias: bool


class LinearSpec(_Spec):
    """A plain linear layer of another size than the family's configuration says."""

    kind: Literal["linear", "conv1d"] = "linear"
    inputs: Size
    outputs: Size
    bias: bool


class QuantisedSpec(_Spec):
    """A linear layer with weights in 4 or 8 bits and one scale per group of inputs."""

    kind: Literal["quantised"] = "quantised"
    inputs: Size
    outputs: Size
    bits: Literal[4, 8]
    group: Size
    bias: bool


Spec = Annotated[
    HarmonizerSpec | LowRankSpec | LinearSpec | QuantisedSpec, Field(discriminator="kind")
]


@runtime_checkable
class Described(Protocol):
    """A layer of this file: it can say how to build an empty one of its kind and size."""

    @property
    def spec(self) -> Any: ...


class Harmonizer(GradientCheckpointingLayer):  # type: ignore[misc]
    """``x + W_up relu(W_down x)``, ``W_up`` zero at the start (ScaleOT, arXiv 2412.09812).

    Stands in the block list; shapes ``(batch, length, hidden)`` in and out, in any floating dtype:
    it computes in that of its own weights. It keeps no key/value cache, so it must not be the first
    block of a model, nor the first of its kind of attention.
    """

    def __init__(self, hidden: int, rank: int, returns_tuple: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, rank, bias=False)
        self.up = nn.Linear(rank, hidden, bias=False)
        nn.init.zeros_(self.up.weight)
        self.returns_tuple = returns_tuple

    @property
    def spec(self) -> HarmonizerSpec:
        return HarmonizerSpec(
            hidden=self.down.in_features, rank=self.down.out_features, tuple=self.returns_tuple
        )

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        change = self.up(torch.relu(self.down(hidden_states.to(self.up.weight.dtype))))
        output = hidden_states + change.to(hidden_states.dtype)
        return (output, None) if self.returns_tuple else output


class LowRankLinear(nn.Module):
    """``y = up(down(x)) + bias`` with ``up`` of shape (outputs, rank), ``down`` (rank, inputs).

    Either factor may be quantised in its turn; the manifest then names it beside this layer.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = inputs, outputs, rank
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=bias)

    @property
    def spec(self) -> LowRankSpec:
        inputs, outputs, bias = self.in_features, self.out_features, self.up.bias is not None
        return LowRankSpec(inputs=inputs, outputs=outputs, rank=self.rank, bias=bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.up(self.down(inputs)))


class QuantisedLinear(nn.Module):
    """Weight-only integer linear layer, symmetric round-to-nearest per group of inputs.

    ``codes`` and ``scales`` are what :func:`~offsite.model.packed.pack` gives. Both are frozen
    buffers, and stay packed while a model trains; activations stay in their own dtype.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, inputs: int, outputs: int, bits: int, group: int, bias: bool) -> None:
        super().__init__()
        if inputs % group or (bits == 4 and inputs % 2):
            raise OffsiteError(
                f"A group of {group} does not divide {inputs} inputs; choose another."
            )
        self.in_features, self.out_features, self.bits, self.group = inputs, outputs, bits, group
        width, dtype = (inputs, torch.int8) if bits == 8 else (inputs // 2, torch.uint8)
        self.register_buffer("codes", torch.zeros(outputs, width, dtype=dtype))
        self.register_buffer("scales", torch.ones(outputs, inputs // group))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @property
    def spec(self) -> QuantisedSpec:
        sizes: dict[str, Any] = {"inputs": self.in_features, "outputs": self.out_features}
        sizes |= {"bits": self.bits, "group": self.group}
        return QuantisedSpec(**sizes, bias=self.bias is not None)

    @property
    def qweight(self) -> torch.Tensor:
        """The codes, by the name under which peft looks for a quantised layer's device."""
        return self.codes

    def store(self, weight: torch.Tensor) -> None:
        """Quantise a float weight of shape (outputs, inputs) into this layer."""
        self.codes, self.scales = pack(weight, self.bits, self.group)

    def dequantised(self) -> torch.Tensor:
        """The weight that it represents, (outputs, inputs), in the dtype of the scales."""
        return unpack(self.codes, self.scales)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return packed_linear(inputs, self.codes, self.scales, self.bias)


def effective_weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """The weights that a delta may change: parameters, and the weights of integer layers.

    One unpacked weight exists at a time.
    """
    yield from module.parameters()
    for layer in module.modules():
        if isinstance(layer, QuantisedLinear):
            yield layer.dequantised()


def build(spec: Any) -> nn.Module:
    """An empty layer of a spec; its tensors are filled by ``load_state_dict``."""
    if isinstance(spec, HarmonizerSpec):
        return Harmonizer(spec.hidden, spec.rank, spec.tuple)
    if isinstance(spec, LowRankSpec):
        return LowRankLinear(spec.inputs, spec.outputs, spec.rank, spec.bias)
    if isinstance(spec, QuantisedSpec):
        return QuantisedLinear(spec.inputs, spec.outputs, spec.bits, spec.group, spec.bias)
    if spec.kind == "conv1d":
        return cast(nn.Module, Conv1D(spec.outputs, spec.inputs))
    return nn.Linear(spec.inputs, spec.outputs, bias=spec.bias)


def is_attention(name: str) -> bool:
    """Whether a layer's name within its block says that it belongs to attention."""
    return "attn" in name.lower() or "attention" in name.lower()


def linear_spec(layer: nn.Module) -> LinearSpec | None:
    """The spec of a plain ``nn.Linear`` or GPT-2 ``Conv1D``, else None."""
    if isinstance(layer, Conv1D):
        return LinearSpec(kind="conv1d", inputs=layer.nx, outputs=layer.nf, bias=True)
    if isinstance(layer, nn.Linear):
        inputs, outputs = layer.in_features, layer.out_features
        return LinearSpec(inputs=inputs, outputs=outputs, bias=layer.bias is not None)
    return None


def linear_shape(layer: nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer, plain, low-rank or quantised; None for any other."""
    if isinstance(layer, (LowRankLinear, QuantisedLinear)):
        return layer.out_features, layer.in_features
    spec = linear_spec(layer)
    return None if spec is None else (spec.outputs, spec.inputs)
