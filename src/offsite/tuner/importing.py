"""Import LoRA adapters that peft trained on an offer with other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from offsite.codec import to_json
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta, new_delta
from offsite.exchange.delta_contents import PEFT_CONFIG, PEFT_WEIGHTS
from offsite.exchange.manifest import Reach
from offsite.exchange.offer import Offer
from offsite.files import read_json, shown
from offsite.model.blocks import block_of, get_blocks
from offsite.model.heads import head_tensors, labels_of
from offsite.model.tensors import load_tensors
from offsite.tuner.preparing import private_copy, to_offer_dtypes, tuned_blocks

READ = ("r", "lora_alpha", "use_dora", "use_rslora", "peft_type", "bias", "init_lora_weights")
IDLE = (  # say where an adapter sits, how it was trained or who made it, not what it computes
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "target_modules", "task_type"),
)
PEFT_MODEL = "base_model.model."  # before each name of the model, as peft saves them
KEEP_BASE = ("gaussian", "eva", "orthogonal", "mica")  # beginnings that leave the weights alone


def import_peft(offer: Offer, folder: str | Path) -> Delta:
    """A delta from a peft LoRA adapter that was trained on an offer.

    Layers of the adapter blocks that it leaves alone get an update of zero. Where the offer allows
    it, an adapter that goes beyond them becomes a delta over all blocks. A classifier head that
    peft saved whole (``modules_to_save``) goes along, with the names of the offer's own classes.

    Args:
        offer: the offer it was trained on.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``, as peft writes them.

    Raises:
        OffsiteError: no LoRA adapter, options that cannot be plugged, tensors outside the offer's
            adapter blocks, or a head for another number of classes.
    """
    folder = Path(folder)
    config = read_json(folder / PEFT_CONFIG)
    if not (folder / PEFT_WEIGHTS).is_file():
        raise OffsiteError(f"'{folder}' has no {PEFT_WEIGHTS}; save the adapter as safetensors.")
    tensors, head = divided(load_tensors([folder / PEFT_WEIGHTS], foreign=True), offer, folder)
    if head and isinstance(config, dict):
        config["modules_to_save"] = None  # nothing else of it is left in ``tensors``
    adapter, path = offer.manifest.adapter, offer.manifest.block_path
    outside = any(block_of(name, path) not in adapter for name in tensors)
    reach: Reach = "all" if outside and offer.manifest.contract.reach == "all" else "adapter"
    allowed = adapter if reach == "adapter" else tuple(range(len(get_blocks(offer.model))))
    for name in tensors:
        if (block := block_of(name, path)) not in allowed:
            way = f"layers_to_transform={list(allowed)}"
            raise OffsiteError(
                f"'{folder}' tunes '{name}', which is outside the offer's adapter blocks "
                f"{list(allowed)}; train again with {way}"
                + ("." if block is not None else " and without modules_to_save.")
            )
    method = method_of(config, tensors, folder)
    tuned_blocks(offer, method, reach)
    attached = method.attach(private_copy(offer), allowed)
    own = attached.tensors()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise OffsiteError(
                f"'{folder}' has a tensor '{name}' that does not fit the offer's adapter blocks; "
                "train again on this offer."
            )
    if method.dora and own.keys() - tensors.keys():
        raise OffsiteError(
            f"'{folder}' is a DoRA adapter that does not tune the same layers in every adapter "
            "block; train again with the same target_modules in all of them."
        )
    whole = {name: tensors.get(name, torch.zeros_like(own[name])) for name in own}
    return new_delta(
        offer.manifest, whole | head, to_json(method), peft_config=attached.peft_config(),
        head=tuple(head), labels=labels_of(offer.model) if head else (), reach=reach,
    )  # fmt: skip


def divided(
    tensors: Mapping[str, torch.Tensor], offer: Offer, folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of an adapter, and those that are the offer's classifier head, by its names.

    Raises:
        OffsiteError: a part of a head, or one for another number of classes than the offer's.
    """
    own = head_tensors(offer.model)
    head = {name: tensors[key] for name in own if (key := f"{PEFT_MODEL}{name}") in tensors}
    if head and {name: tensor.shape for name, tensor in head.items()} != {
        name: tensor.shape for name, tensor in own.items()
    }:
        raise OffsiteError(
            f"The classifier head in '{folder}' is not of the shape of the offer's, which has "
            f"{len(labels_of(offer.model))} classes, and peft saves no names of others; tune to "
            "other classes with 'offsite tune'."
        )
    rest = {name: t for name, t in tensors.items() if name.removeprefix(PEFT_MODEL) not in head}
    return rest, to_offer_dtypes(head, offer)


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
    odd = sorted(key for key in config.keys() - {*READ, *IDLE} if config[key])
    if odd or config.get("bias", "none") != "none":
        raise OffsiteError(
            f"'{folder}' sets '{shown(odd[0]) if odd else 'bias'}', which a delta cannot carry; "
            "train plain LoRA on the adapter blocks only."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in KEEP_BASE:
        raise OffsiteError(
            f"'{folder}' was started with init_lora_weights='{shown(start)}', which changes the "
            "base weights too; save it with peft's path_initial_model_for_weight_conversion, or "
            "train plain LoRA."
        )
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A" in name}
    if ranks != {config.get("r")}:
        raise OffsiteError(
            f"The {PEFT_CONFIG} of '{folder}' says rank {shown(config.get('r'))}, and its "
            "tensors have another; save the adapter again with peft."
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
        raise OffsiteError(
            f"The {PEFT_CONFIG} of '{folder}' lacks 'r' or 'lora_alpha'; save the adapter again "
            "with peft."
        ) from error
