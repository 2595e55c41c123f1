"""LoRA adapters of peft that were trained on an offer with other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from offsite.blocks import block_of
from offsite.config import to_json
from offsite.delta import PEFT_CONFIG, PEFT_WEIGHTS, Delta, new_delta
from offsite.deltas.lora import LoRA
from offsite.errors import OffsiteError
from offsite.files import read_json, shown
from offsite.offer import Offer
from offsite.tensors import load_tensors
from offsite.tuner import private_copy

REFUSED = (
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "megatron_config",
)


def import_peft(offer: Offer, folder: str | Path) -> Delta:
    """A delta from a peft LoRA adapter that was trained on an offer.

    Layers of the adapter blocks that it leaves alone get an update of zero.

    Args:
        offer: the offer it was trained on.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``, as peft writes them.

    Raises:
        OffsiteError: no LoRA adapter, options that cannot be plugged, or tensors outside the
            offer's adapter blocks.
    """
    folder = Path(folder)
    config = read_json(folder / PEFT_CONFIG)
    if not (folder / PEFT_WEIGHTS).is_file():
        raise OffsiteError(f"'{folder}' has no {PEFT_WEIGHTS}; save the adapter as safetensors.")
    tensors = load_tensors([folder / PEFT_WEIGHTS])
    allowed, path = offer.manifest.adapter, offer.manifest.block_path
    for name in tensors:
        if block_of(name, path) not in allowed:
            raise OffsiteError(
                f"'{folder}' tunes '{name}', which is outside the offer's adapter blocks "
                f"{list(allowed)}; train again with layers_to_transform={list(allowed)}."
            )
    method = method_of(config, tensors, folder)
    runner = method.attach(private_copy(offer, torch.float32), allowed)
    own = method.tensors(runner)
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise OffsiteError(
                f"'{folder}' has a tensor '{name}' that does not fit the offer's adapter blocks."
            )
    if method.dora and own.keys() - tensors.keys():
        raise OffsiteError("A DoRA adapter must tune the same layers in every adapter block.")
    whole = {name: tensors.get(name, torch.zeros_like(own[name])) for name in own}
    return new_delta(offer.manifest, whole, to_json(method), peft_config=method.peft_config(runner))


def method_of(config: Any, tensors: Mapping[str, torch.Tensor], folder: Path) -> LoRA:
    """The method that a peft configuration and its tensors describe.

    Raises:
        OffsiteError: another method than LoRA, or an option that a delta cannot carry.
    """
    kind = config.get("peft_type") if isinstance(config, Mapping) else None
    if kind != "LORA":
        raise OffsiteError(
            f"'{folder}' is a peft adapter of type '{shown(kind)}'; only LORA adapters can be "
            "imported, so tune other methods with 'offsite tune'."
        )
    odd = [key for key in REFUSED if config.get(key)]
    if odd or config.get("bias", "none") != "none":
        raise OffsiteError(
            f"'{folder}' sets '{odd[0] if odd else 'bias'}', which a delta cannot carry; train "
            "plain LoRA on the adapter blocks only."
        )
    leaves = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})
    try:
        return LoRA(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dora=bool(config.get("use_dora")),
            rslora=bool(config.get("use_rslora")),
            targets=",".join(leaves),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, OffsiteError):
            raise
        raise OffsiteError(f"The {PEFT_CONFIG} of '{folder}' lacks 'r' or 'lora_alpha'.") from error
