"""Runs that tune every weight: of the full model (baseline), and of an offer (healed)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from offsite.model.heads import attach_head, head_tensors
from offsite.model.layers import QuantisedLinear
from offsite.tasks.task import Task
from offsite.training.options import TrainOptions
from offsite.training.train import History, train


def trainable(model: nn.Module) -> nn.Module:
    """A copy in float32 that requires gradients everywhere; integer weights become dense ones.

    Blocks that share their tensors go on sharing them.
    """
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantisedLinear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, dense(layer))
    return model.float().requires_grad_(True)


def dense(layer: QuantisedLinear) -> nn.Linear:
    """The plain linear layer of a quantised one."""
    new = nn.Linear(layer.in_features, layer.out_features, bias=False)
    new.weight = nn.Parameter(layer.dequantised().clone())
    new.register_parameter("bias", layer.bias)
    return new


def tune_all(
    model: nn.Module, rows: Any, task: Task, options: TrainOptions, device: torch.device, text: str
) -> History:
    """Tune every weight of a model that :func:`trainable` gave, in place; returns how it went."""
    attach_head(model, task.labels(rows))
    return train(
        model.requires_grad_(True), rows, loss=task.loss, collate=task.collate, options=options,
        rates=[(head_tensors(model).values(), options.head_lr)], device=device, text=text,
    )  # fmt: skip


def best_rate(tried: Mapping[float, Mapping[str, Any]], higher: bool) -> dict[str, Any]:
    """The outcome of the best learning rate, with ``lr`` and the value of each in ``rates``.

    The rates are compared on the evaluation data itself, which favours the tuner: it makes
    recovered and margin smaller than a choice on other data would. A rate that diverged counts
    only where all did.
    """
    rates = {str(rate): outcome["value"] for rate, outcome in tried.items()}
    known = {rate: outcome for rate, outcome in tried.items() if outcome["value"] is not None}
    choose = max if higher else min
    lr = choose(known, key=lambda rate: known[rate]["value"]) if known else next(iter(tried))
    return {**tried[lr], "lr": lr, "rates": rates}
