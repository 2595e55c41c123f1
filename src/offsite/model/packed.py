"""Weights of 4 or 8 bits that stay packed in the forward and the backward pass.

A linear layer saves its weight for the backward pass. If that weight was unpacked from integers,
one unpacked copy of every layer stays alive through a training step, and the integers save nothing.
Here only the integers are saved, and a weight is unpacked a second time where its gradient is due.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def pack(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to integers, symmetrically, with one scale for each group of inputs.

    Args:
        weight: (outputs, inputs), floating; the group divides the inputs.
        bits: 4 or 8.

    Returns:
        Codes, int8 of (outputs, inputs) or, at 4 bits, uint8 of (outputs, inputs / 2) with the even
        input in the low nibble, stored plus 8; and scales, (outputs, inputs / group).
    """
    top = 2 ** (bits - 1) - 1
    groups = weight.detach().float().view(len(weight), -1, group)
    scales = groups.abs().amax(-1).clamp_min(1e-12) / top
    codes = (groups / scales[..., None]).round().clamp(-top, top).flatten(1).to(torch.int8)
    if bits == 4:
        nibbles = (codes + 8).to(torch.uint8)
        codes = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return codes, scales.to(weight.dtype)


def unpack(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight that codes and scales represent, (outputs, inputs), in the dtype of the scales."""
    if codes.dtype == torch.uint8:
        pair = torch.stack((codes & 15, codes >> 4), dim=-1)
        codes = pair.flatten(1).to(torch.int8) - 8
    groups = codes.view(*scales.shape, -1).to(scales.dtype)
    return (groups * scales[..., None]).flatten(1)


def packed_linear(
    inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``inputs @ unpack(codes, scales).T + bias``, computed in the dtype of the inputs.

    Output and gradients are those of the unpacked weight, bit for bit. The weight itself does not
    train.
    """
    found: torch.Tensor = _Product.apply(inputs, codes, scales, bias)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return nn.functional.linear(inputs, unpack(codes, scales).to(inputs.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        given, codes, scales, _ = inputs
        ctx.save_for_backward(codes, scales)
        ctx.dtype = given.dtype

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> Any:
        (slope,), (codes, scales) = slopes, ctx.saved_tensors
        given = bias = None
        if ctx.needs_input_grad[0]:
            weight = unpack(codes, scales).to(ctx.dtype).to(slope.dtype)
            given = (slope @ weight).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            bias = slope.flatten(0, -2).sum(0)
        return given, None, None, bias
