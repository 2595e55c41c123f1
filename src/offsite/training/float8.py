"""Products with frozen weights in 8-bit floating point, which recent GPUs multiply twice as fast.

Every row of states, and every row of their gradients, is scaled to the range of float8 e4m3 by its
own largest value when it is multiplied ("rowwise dynamic scaling"); so are the rows of the weights,
once. This is the recipe of torchao's float8 training for weights that do not train: these are cast
once and not in every step, in both directions, and take the memory they take in bfloat16. The
format is that of Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.errors import OffsiteError
from offsite.model.layers import linear_shape
from offsite.training.tunable import frozen_blocks

FLOAT8 = torch.float8_e4m3fn
SMALLEST = 1e-30  # of a row's largest value, so that a row of zeros can be divided by it
MULTIPLE = 16  # of which both sizes of a weight must be one
CAPABILITY = (8, 9)  # of the first NVIDIA GPUs that multiply float8


def scaled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float8 codes of (n, k) rows, and their scales (n, 1) in float32, whose product they are."""
    largest = rows.abs().amax(1, keepdim=True).float().clamp(min=SMALLEST)
    scales = largest / torch.finfo(FLOAT8).max
    return (rows.float() / scales).to(FLOAT8), scales


class Float8Linear(nn.Module):
    """A linear layer with a frozen weight (outputs, inputs), held in float8 for both directions.

    States (..., inputs) and their gradients are rounded to float8; products are summed in float32
    and come out in the dtype of the states under autocast.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    turned: torch.Tensor
    turned_scales: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        codes, scales = scaled(weight)
        turned, turned_scales = scaled(weight.t())
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", scales.t().contiguous())
        self.register_buffer("turned", turned.contiguous())
        self.register_buffer("turned_scales", turned_scales.t().contiguous())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        kind = states.device.type
        if torch.is_autocast_enabled(kind):
            states = states.to(torch.get_autocast_dtype(kind))
        output: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            states.flatten(0, -2), self.codes, self.scales, self.turned, self.turned_scales
        )
        output = output.view(*states.shape[:-1], len(self.codes))
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        turned: torch.Tensor,
        turned_scales: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(turned, turned_scales)
        return product(states, codes, scales)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> Any:
        turned, turned_scales = ctx.saved_tensors
        return product(slopes[0], turned, turned_scales), None, None, None, None


def product(rows: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``rows @ weight.t()``, rounded to float8 first: (n, k) by (m, k) to (n, m).

    Args:
        rows: in bfloat16 or float32, the dtype of what is returned.
        codes, scales: of the weight's rows, (m, k) and (1, m).
    """
    own, own_scales = scaled(rows)
    return torch._scaled_mm(
        own, codes.t(), scale_a=own_scales, scale_b=scales, out_dtype=torch.bfloat16,
        use_fast_accum=True,
    ).to(rows.dtype)  # fmt: skip


@contextmanager
def in_float8(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the ``with``, linear layers of frozen blocks multiply in float8 on ``device``.

    Blocks in which something trains stay exact, and so do layers whose weight is packed integers or
    is not a multiple of 16 in both sizes. Weights that blocks share are cast once.

    Raises:
        OffsiteError: a device that does not multiply float8, or no layer to cast.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise OffsiteError(
            f"{torch.cuda.get_device_name(device)} does not multiply float8; use --precision "
            "bfloat16."
        )
    layers = frozen_layers(model)
    if not layers:
        raise OffsiteError(
            "This offer has no frozen block with plain weights, so float8 would change nothing; "
            "leave out --precision float8."
        )
    cast: dict[int, Float8Linear] = {}
    whole: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent, name, layer in layers:
            key = id(layer.weight)
            if key not in cast:
                weight = layer.weight.detach().to(device)
                weight = weight.t() if isinstance(layer, Conv1D) else weight
                cast[key] = Float8Linear(weight, layer.bias)
            whole.append((parent, name, layer))
            setattr(parent, name, cast[key])
        yield
    finally:
        for parent, name, layer in whole:
            setattr(parent, name, layer)


def frozen_layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Linear layers of blocks that do not train, each with its parent and its name there."""
    return [
        (parent, name, layer)
        for _, _, block in frozen_blocks(model)
        for parent in block.modules()
        for name, layer in parent.named_children()
        if type(layer) in (nn.Linear, Conv1D)
        and all(size % MULTIPLE == 0 for size in linear_shape(layer) or ())
    ]
