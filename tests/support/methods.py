"""What the tests of all methods share: every method in small, and the families it works on."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from offsite.deltas import METHODS, Combined
from offsite.exchange.side import SideTensors, attach_side
from tests.support.models import language_model

FAMILIES = ("gpt2", "opt", "bloom", "llama", "qwen2")
ADAPTER = (0, 1, 5)
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "vera": {"rank": 4},
    "oft": {"block_size": 8},
    "fourier": {"frequencies": 20},
    "diff_pruning": {"density": 0.05},
    "intrinsic": {"dim": 20},
    "bottleneck": {"size": 4},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
}
METHOD_CASES: dict[str, Any] = {  # all but those for images alone
    **{kind: METHODS[kind](**SMALL.get(kind, {})) for kind in METHODS if kind != "head"},
    "full-attention": METHODS["full"](part="attention"),
    "full-mlp": METHODS["full"](part="mlp"),
    "full-norm": METHODS["full"](part="norm"),
    "lora-dora": METHODS["lora"](rank=2, dora=True),
    "lora-rslora": METHODS["lora"](rank=2, rslora=True),
    "bottleneck-pfeiffer": METHODS["bottleneck"](size=4, style="pfeiffer"),
    "prefix-prepended": METHODS["prefix"](length=3, gated=False),
    "intrinsic-plain": METHODS["intrinsic"](dim=20, structured=False),
}
NOT_AT_ZERO = (
    "prompt",
    "prefix-prepended",
    "intrinsic_prompt",
    "bottleneck+prompt+bitfit",
    "intrinsic+full-norm+prompt",
)
COMBINED: dict[str, Any] = {
    "lora+bitfit": ("lora", "bitfit"),
    "lora-dora+full-norm": ("lora-dora", "full-norm"),
    "masking+bitfit": ("masking", "bitfit"),
    "full-attention+lora": ("full-attention", "lora"),
    "diff_pruning+full-mlp": ("diff_pruning", "full-mlp"),
    "bottleneck+prompt+bitfit": ("bottleneck", "prompt", "bitfit"),
    "bottleneck+lora+prefix": ("bottleneck", "lora", "prefix"),
    "diff_pruning+bottleneck": ("diff_pruning", "bottleneck"),
    "intrinsic+full-norm+prompt": ("intrinsic", "full-norm", "prompt"),
    "vera+bottleneck-pfeiffer": ("vera", "bottleneck-pfeiffer"),
}
METHOD_CASES |= {
    name: Combined(tuple(METHOD_CASES[part] for part in parts)) for name, parts in COMBINED.items()
}
REFUSED = [
    *((name, "gpt2") for name in ("loha", "lokr", "oft")),
    *((name, "bloom") for name in ("prefix", "prefix-prepended", "bottleneck+lora+prefix")),
]
PAIRS = [(n, f) for n in METHOD_CASES for f in FAMILIES if (n, f) not in REFUSED]
IDS = [f"{name}-{family}" for name, family in PAIRS]


DECODER = {
    "inner": torch.randn(6, 10, generator=torch.Generator().manual_seed(0)),
    "inner_bias": torch.zeros(6),
    "outer": torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(1)) * 0.1,
    "outer_bias": torch.zeros(3, 16),
}


@cache
def original(family: str) -> Any:
    return language_model(family)


def small_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model of six blocks, always the same."""
    model = copy.deepcopy(original(family)).to(dtype)
    attach_side(model, SideTensors("prompt_decoder", DECODER))
    torch.manual_seed(0)  # for what a method draws when it is attached
    return model


def disturb(runner: Any, size: float = 0.1) -> None:
    """Move every trainable number by a random step, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in runner.named_parameters():
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=generator) * size
                step = step * 8 if name.endswith(".score") else step  # a score must cross zero
                step = step / 20 if name.endswith(".gate") else step  # stored in large units
                parameter.add_(step.to(parameter.dtype))
