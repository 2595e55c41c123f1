"""The part that all methods of peft share: everything but their configuration."""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

from offsite.deltas.method import Attached, Method
from offsite.deltas.targets import linear_layers
from offsite.errors import OffsiteError


class ThroughPeft(Method):
    """What all methods through peft share: everything but their configuration.

    The layers are named one by one, so nothing outside the given blocks can be touched. All merge,
    in the dtype of the blocks.
    """

    place: ClassVar[str] = "weights"
    merges: ClassVar[bool] = True

    @abstractmethod
    def config(self, model: nn.Module, blocks: Sequence[int]) -> Any:
        """The ``peft.PeftConfig`` for some blocks of a model."""

    def install(self, model: nn.Module, blocks: Sequence[int]) -> Attached:
        from peft import get_peft_model

        with warnings.catch_warnings():  # a low-rank or quantised layer of ours
            warnings.filterwarnings("ignore", "Unsupported layer type")
            config = self.config(model, blocks)
            try:
                with by_name(model):
                    wrapped = get_peft_model(model, config)
            except (ValueError, TypeError, NotImplementedError) as error:
                names = sorted({name.rsplit(".", 1)[-1] for name in config.target_modules})
                raise OffsiteError(
                    f"peft cannot use '{self.kind}' on all of {', '.join(names)} of this "
                    f"{type(model).__name__}; choose some of them with targets=, or use full."
                ) from error
            return AttachedPeft(self, wrapped)


class AttachedPeft(Attached):
    """A peft adapter; what other methods add to its layers later does not belong to it."""

    def __init__(self, method: Method, model: nn.Module) -> None:
        super().__init__(method, model)
        self.names = tuple(self.state())

    def state(self) -> dict[str, torch.Tensor]:
        """All that peft counts to the adapter."""
        from peft.utils import get_peft_model_state_dict

        state: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.model, save_embedding_layers=False
        )
        return state

    def tensors(self) -> dict[str, torch.Tensor]:
        state = self.state()
        return {name: state[name] for name in self.names}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        from peft.utils import set_peft_model_state_dict

        with warnings.catch_warnings():  # VeRA's, that projections are drawn again: intended
            warnings.filterwarnings("ignore", "Specified to not")
            with by_name(self.model):
                result = set_peft_model_state_dict(self.model, dict(tensors))
        if result.unexpected_keys:
            raise OffsiteError(
                "The delta's tensors do not fit its peft method on these blocks; ask its sender to "
                "make it again."
            )

    def detach(self) -> nn.Module:
        merged: nn.Module = self.model.merge_and_unload()  # type: ignore[operator]
        return merged

    def peft_config(self) -> str:
        config = self.model.peft_config["default"].to_dict()  # type: ignore[index, union-attr]
        config |= {"base_model_name_or_path": None, "revision": None}  # it would be a local path
        config["inference_mode"] = True
        return json.dumps(config, indent=1, default=plain, sort_keys=True) + "\n"


@contextmanager
def by_name(model: nn.Module) -> Iterator[None]:
    """Within the ``with``, peft takes layers by the names they have.

    Of some mixtures of experts it otherwise reads names such as ``gate_proj`` as older releases of
    transformers used them, and trains the fused experts of all blocks instead (peft 3711).
    """
    own: dict[str, Any] = vars(model.config)
    kind = getattr(model.config, "model_type", None)
    if get_checkpoint_conversion_mapping(kind) is None:  # peft renames nothing
        yield
        return
    hidden = {"model_type": own["model_type"]} if "model_type" in own else {}
    own["model_type"] = ""
    try:
        yield
    finally:
        del own["model_type"]
        own.update(hidden)


def plain(value: Any) -> Any:
    """JSON for the sets and enums in a peft configuration."""
    return (
        sorted(value)
        if isinstance(value, (set, frozenset))
        else getattr(value, "value", str(value))
    )


def target_names(
    model: nn.Module, blocks: Sequence[int], targets: str, refuse_conv1d: str | None = None
) -> list[str]:
    """Full names of the linear layers to work on.

    Args:
        refuse_conv1d: the name of a method that cannot work on GPT-2's ``Conv1D``.

    Raises:
        OffsiteError: nothing matches, or a layer that the method cannot take.
    """
    layers = linear_layers(model, blocks, targets)
    if refuse_conv1d and any(isinstance(layer, Conv1D) for layer in layers.values()):
        raise OffsiteError(
            f"{refuse_conv1d} cannot work on the Conv1D layers of a {type(model).__name__}; use "
            "lora, ia3 or vera there."
        )
    return list(layers)


def fan_in_fan_out(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the layers keep their weights as (inputs, outputs), as GPT-2's ``Conv1D`` does."""
    return any(isinstance(model.get_submodule(name), Conv1D) for name in names)
