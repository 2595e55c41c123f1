"""LoRA inside the adapter blocks, through peft (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from offsite.blocks import block_path, get_blocks
from offsite.config import require
from offsite.deltas.full import part_of
from offsite.layers import linear_spec
from offsite.tensors import TensorEntry, describe


def linear_names(model: nn.Module, blocks: Sequence[int], targets: str) -> list[str]:
    """Leaf names of the linear layers in some blocks: ``all``, ``attention``, ``mlp`` or a list.

    Raises:
        OffsiteError: nothing in the blocks matches.
    """
    found = {
        name
        for index in blocks
        for name, module in get_blocks(model)[index].named_modules()
        if linear_spec(module) is not None
    }
    if targets in ("attention", "mlp"):
        wanted = {name for name in found if part_of(f"{name}.weight") == targets}
    elif targets == "all":
        wanted = found
    else:
        names = set(targets.split(","))
        wanted = {name for name in found if name.rsplit(".", 1)[-1] in names}
    leaves = sorted({name.rsplit(".", 1)[-1] for name in found})
    require(
        bool(wanted),
        f"No linear layer of the adapter blocks matches targets={targets}; use all, attention, "
        f"mlp, or names among {', '.join(leaves)}.",
    )
    return sorted({name for name in wanted})


class PeftMethod:
    """The half of :class:`~offsite.deltas.method.Method` that all peft methods share."""

    merges: ClassVar[bool] = True

    def config(self, model: nn.Module, blocks: Sequence[int]) -> PeftConfig:
        """The peft configuration for some blocks of a model."""
        raise NotImplementedError

    def attach(self, model: nn.Module, blocks: Sequence[int]) -> nn.Module:
        config = self.config(model, blocks)
        config.base_model_name_or_path = None  # peft would write the model's local path
        return get_peft_model(model, config)  # type: ignore[arg-type]

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = get_peft_model_state_dict(
            model, save_embedding_layers=False
        )
        return state

    def expected(
        self, model: nn.Module, given: Mapping[str, TensorEntry]
    ) -> dict[str, TensorEntry]:
        return describe(self.tensors(model))

    def load(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        result = set_peft_model_state_dict(model, dict(tensors))
        require(
            not result.unexpected_keys,
            "The delta's tensors do not fit its peft method on these blocks.",
        )

    def merge(self, model: nn.Module) -> nn.Module:
        merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]
        return merged

    def peft_config(self, model: nn.Module) -> str | None:
        config = model.peft_config["default"].to_dict()  # type: ignore[index, union-attr]
        config["inference_mode"] = True
        return json.dumps(config, indent=1, default=plain, sort_keys=True) + "\n"


def plain(value: Any) -> Any:
    """JSON for the sets and enums in a peft configuration."""
    return (
        sorted(value)
        if isinstance(value, (set, frozenset))
        else getattr(value, "value", str(value))
    )


def in_blocks(model: nn.Module, blocks: Sequence[int], targets: str) -> dict[str, Any]:
    """The peft options that restrict a method to linear layers of some blocks."""
    return {
        "target_modules": linear_names(model, blocks, targets),
        "layers_to_transform": list(blocks),
        "layers_pattern": block_path(model).rsplit(".", 1)[-1],
    }


@dataclass(frozen=True)
class LoRA(PeftMethod):
    """Low-rank updates ``W + (alpha / rank) B A`` of the linear layers of the adapter blocks.

    What travels: ``A`` (rank, inputs) and ``B`` (outputs, rank), as a peft adapter. ``B`` is zero
    at the start, so an untrained delta changes nothing. Merged in float32.

    Attributes:
        rank: rank of the update.
        alpha: numerator of the scale.
        dropout: on the input of ``A`` while training.
        targets: ``all``, ``attention``, ``mlp``, or leaf names separated by commas.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "all"

    kind: ClassVar[str] = "lora"
    lr: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"LoRA needs a rank of at least 1, not {self.rank}.")

    def config(self, model: nn.Module, blocks: Sequence[int]) -> PeftConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            **in_blocks(model, blocks, self.targets),
        )
