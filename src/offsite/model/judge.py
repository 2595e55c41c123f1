"""Check from the headers of its files that a checkpoint fits its model exactly.

transformers itself loads the headers into a model on the meta device. What it misses, what it has
no place for, which parameters it ties and which dtypes it chooses are then known before a tensor
is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from offsite.errors import OffsiteError
from offsite.files import reason, shown
from offsite.model.blocks import block_of, block_path, get_blocks
from offsite.model.configuration import wrong_pad
from offsite.model.heads import head_tensors
from offsite.model.stored import StoredModel
from offsite.model.weights import (
    FLOATS,
    StoredTensor,
    check_unquantised,
    quantised,
    read_headers,
    weight_files,
)

SCALES = re.compile(r"(scales?|scale_inv|scale_2|zero_point|zeros|absmax)$")
PREDICTORS = "num_nextn_predict_layers"  # blocks for multi-token prediction, in config.json
TOWER = "vision_model."  # where a family with several towers keeps the one for pictures


def judge(name: str | Path, config: Any, build: Any) -> StoredModel:
    """Let transformers load the headers of a checkpoint, and refuse what does not fit exactly.

    Args:
        name: folder or hub name.
        config: its configuration; where it says tied and the weights say otherwise, it is put
            right in place.
        build: the transformers class of the model.

    Raises:
        OffsiteError: naming the file and the tensor: weights that are missing, quantised, of
            another shape or left over.
    """
    check_unquantised(name, config)
    stored = without_extras(read_headers(weight_files(name, config)), config)
    if build.main_input_name == "pixel_values":
        stored = inside_tower(stored, config)
    floats = [FLOATS[tensor.dtype] for tensor in stored.values() if tensor.dtype in FLOATS]
    dtype = getattr(config, "dtype", None) or next(iter(floats), torch.float32)
    stubs = {
        key: torch.empty(tensor.shape, dtype=dtype, device="meta") for key, tensor in stored.items()
    }
    try:
        skeleton, info = build.from_pretrained(
            None,
            config=config,
            state_dict=stubs,
            dtype=dtype,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a configuration or its tensors make a family raise
        raise wrong_pad(config) or OffsiteError(
            f"The weights of '{name}' cannot be loaded as {build.__name__}: {reason(error)}."
        ) from error
    names, converted, unused = match(skeleton, stored)
    state = skeleton.state_dict()
    for target, keys in names.items():
        for key in keys:
            if state[target].is_floating_point() and stored[key].dtype not in FLOATS:
                raise quantised(stored[key])
    head = set(head_tensors(skeleton))
    missing = set(info["missing_keys"])
    empty = tuple(sorted(missing & head)) if head <= missing else ()
    check_fit(name, skeleton, stored, unused, missing - set(empty), info)
    made = StoredModel(str(name), skeleton, stored, names, converted, empty)
    settle_ties(made, config)
    return made


def without_extras(stored: dict[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    """The stored tensors without those that transformers passes over and that models do not need.

    Causal masks, which early versions stored as if they were weights (GPT-2, GPT-Neo, GPT-J), and
    the blocks for multi-token prediction after the last one (DeepSeek-V3, GLM-4.5).
    """
    more = getattr(config, PREDICTORS, None) or 0
    total = config.num_hidden_layers if more else 0
    behind = range(total, total + more)
    return {
        key: tensor
        for key, tensor in stored.items()
        if not is_mask(tensor) and not any(f".layers.{index}." in key for index in behind)
    }


def is_mask(tensor: StoredTensor) -> bool:
    """Whether a tensor is a causal mask, or the value that it masks with."""
    name, shape = tensor.key.rpartition("attn.")[2].removeprefix("attention."), tensor.shape
    square = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return (name in ("bias", "causal_mask") and square) or name == "masked_bias"


def inside_tower(stored: dict[str, StoredTensor], config: Any) -> dict[str, StoredTensor]:
    """The tensors by their names in the family's whole model, also if a bare tower was saved.

    A CLIP or SigLIP vision tower on its own is stored without the name of its module.
    """
    if not hasattr(config, "vision_config") or any(key.startswith(TOWER) for key in stored):
        return stored
    return {f"{TOWER}{key}": tensor for key, tensor in stored.items()}


def match(
    skeleton: Any, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, tuple[str, ...]], frozenset[str], dict[str, str]]:
    """Which stored tensors each tensor of a model is made of, as transformers translates names.

    Returns:
        Tensor of the model to stored ones; those that are computed; and for every name that the
        model has no place for the stored tensor.
    """
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, state = skeleton.base_model_prefix, skeleton.state_dict()
    names: dict[str, list[str]] = {}
    converted: set[str] = set()
    unused: dict[str, str] = {}
    for key in stored:
        target, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if target not in state and key in state:
            target, pattern = rename_source_key(key, [], [], prefix, state)
        if target in state:
            names.setdefault(target, []).append(key)
            converted |= {target} if pattern is not None else set()
        else:
            unused[target] = key
    return {name: tuple(keys) for name, keys in names.items()}, frozenset(converted), unused


def check_fit(
    name: str | Path,
    skeleton: Any,
    stored: Mapping[str, StoredTensor],
    unused: Mapping[str, str],
    missing: set[str],
    info: Mapping[str, Any],
) -> None:
    """Refuse a checkpoint that is not exactly what its model holds.

    An image model may be cut out of a checkpoint with more towers; a language model may not.

    Raises:
        OffsiteError: naming the file and the tensor.
    """
    family, path = type(skeleton).__name__, block_path(skeleton)
    total = len(get_blocks(skeleton))
    left = {target: stored[unused.get(target, target)] for target in unused}
    for tensor in left.values():
        if missing and tensor.dtype not in FLOATS and len(tensor.shape) > 1:
            raise quantised(tensor)
    for target in sorted(info["unexpected_keys"] & left.keys()):
        tensor = left[target]
        if (block_of(target, path) or 0) >= total:
            raise OffsiteError(
                f"'{tensor.file}' holds '{shown(tensor.key)}', but config.json says {total} "
                "blocks; the two belong to different models."
            )
    if missing:
        like = [key for key in stored if key != min(missing) and key.endswith(min(missing))]
        way = "use a complete checkpoint of the same model"
        if like:
            prefix = shown(like[0].removesuffix(min(missing)))
            way = f"it holds '{shown(like[0])}', so take '{prefix}' off the names of its tensors"
        raise OffsiteError(
            f"The weights of '{name}' lack '{shown(min(missing))}' ({len(missing)} tensors are "
            f"missing), which a {family} of this config.json needs; {way}."
        )
    for key, found, needed in sorted(info["mismatched_keys"]):
        raise OffsiteError(
            f"The weights of '{name}' hold '{shown(key)}' of shape {tuple(found)}, but a {family} "
            f"of this config.json needs {tuple(needed)}; use the config.json of the same model."
        )
    for target in sorted(info["unexpected_keys"]):
        if skeleton.main_input_name != "pixel_values":
            file = f"'{left[target].file}'" if target in left else f"'{name}'"
            if SCALES.search(target):
                raise OffsiteError(
                    f"{file} holds '{shown(target)}', as quantised weights have; offsite cuts "
                    "floating-point weights only, so use the original checkpoint or a dequantised "
                    "copy."
                )
            raise OffsiteError(
                f"{file} holds '{shown(target)}', which a {family} of this config.json has no "
                "place for; load the model with transformers and write it again to leave it out."
            )


def settle_ties(made: StoredModel, config: Any) -> None:
    """Tie parameters that are stored twice with equal values; where they differ, say so.

    This is transformers' rule, which it cannot apply to headers alone.
    """
    skeleton = made.skeleton
    for target, source in list(getattr(skeleton, "all_tied_weights_keys", {}).items()):
        if skeleton.get_parameter(target) is skeleton.get_parameter(source):
            continue
        pair = dict(made.tensors({target, source}.__contains__))
        if torch.equal(pair[target], pair[source]):
            owner, _, leaf = target.rpartition(".")
            setattr(skeleton.get_submodule(owner), leaf, skeleton.get_parameter(source))
        else:
            config.tie_word_embeddings = skeleton.config.tie_word_embeddings = False
