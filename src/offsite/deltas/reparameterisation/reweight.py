"""Methods that recompute weights: ``weight -> f(weight, numbers)`` at every use.

They stand on ``torch.nn.utils.parametrize``: the layer stays what it is (GPT-2's ``Conv1D`` too),
gradient checkpointing and caches do not notice, and folding the result back is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from offsite.model.blocks import freeze


def reweight(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    build: Callable[[str, nn.Parameter], nn.Module],
) -> nn.Module:
    """Freeze ``model`` and let ``build(name, weight)`` recompute the weight of each layer."""
    freeze(model)
    for name, layer in layers.items():
        module = build(name, layer.weight)  # type: ignore[arg-type]
        parametrize.register_parametrization(layer, "weight", module, unsafe=True)
    return model


def reweighted(model: nn.Module) -> dict[str, Any]:
    """What recomputes each weight, by the weight's name in the plain model."""
    return {
        f"{name}.weight": module.parametrizations["weight"][0]  # type: ignore[index, union-attr]
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
    }


def fold(model: nn.Module) -> nn.Module:
    """Replace every recomputed weight by its value; the model is plain again."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
