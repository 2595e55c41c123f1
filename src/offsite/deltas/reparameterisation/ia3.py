"""Rescaled keys, values and feed-forward activations through peft (IA3; arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from offsite.deltas.reparameterisation.through_peft import ThroughPeft, fan_in_fan_out, target_names
from offsite.deltas.targets import part_of

QUERIES = ("q_proj", "query", "q", "wq")


@dataclass(frozen=True)
class IA3(ThroughPeft):
    """Multiply keys, values and the inputs of the last feed-forward layer by learnt vectors.

    The delta holds one vector for each such layer, as a peft adapter. The vectors start at one, so
    an untrained delta changes nothing; merges. A fused projection (GPT-2, BLOOM) is scaled whole,
    queries included, as peft does.
    """

    kind: ClassVar[str] = "ia3"
    lr: ClassVar[float] = 1e-2
    when: ClassVar[str] = "a few kilobytes through peft, on models with or without biases"

    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        from peft import IA3Config

        outputs, inputs = [], []
        for index in blocks:
            names = target_names(model, [index], "all")
            attention = [name for name in names if part_of(f"{name}.weight") == "attention"]
            outputs += [n for n in attention[:-1] if n.rsplit(".", 1)[-1] not in QUERIES]
            inputs += [name for name in names if name not in attention][-1:]
        names = outputs + inputs
        return IA3Config(
            target_modules=names,
            feedforward_modules=inputs,
            fan_in_fan_out=fan_in_fan_out(model, names),
        )
