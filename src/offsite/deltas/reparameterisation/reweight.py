"""Methods that recompute weights: ``weight -> f(weight, parameters)`` at every use.

They use ``torch.nn.utils.parametrize``: the layer keeps its class (GPT-2's ``Conv1D`` too),
gradient checkpointing and caches do not notice, and folding the result back is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from offsite.deltas.method import Attached, Method
from offsite.model.blocks import freeze

Built = TypeVar("Built", bound=nn.Module)


def reweight(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    build: Callable[[str, nn.Parameter], Built],
) -> tuple[dict[str, Built], Callable[[], None]]:
    """Freeze ``model`` and let ``build(name, weight)`` recompute the weight of each layer.

    Returns:
        What recomputes each weight, by the weight's name in the plain model, and a function that
        replaces every recomputed weight by its value, so that the model is plain again.
    """
    freeze(model)
    built: dict[str, Built] = {}
    for name, layer in layers.items():
        module = build(name, layer.weight)  # type: ignore[arg-type]
        parametrize.register_parametrization(layer, "weight", module, unsafe=True)
        built[f"{name}.weight"] = module

    def fold() -> None:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    return built, fold


class AttachedReweighting(Attached, Generic[Built]):
    """Modules that recompute weights, by the weight's name; ``fold`` leaves their values there."""

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        parts: Mapping[str, Built],
        fold: Callable[[], None],
    ) -> None:
        super().__init__(method, model)
        self.parts, self.fold = parts, fold

    def detach(self) -> nn.Module:
        self.fold()
        return self.model
