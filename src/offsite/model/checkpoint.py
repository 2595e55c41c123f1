"""Load and save transformers checkpoints, whole or only some blocks of them.

Only safetensors are read, remote code is never run, and a checkpoint that does not fit its model
exactly is refused: transformers would fill what is missing with random numbers.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from offsite.errors import OffsiteError
from offsite.model.blocks import assemble, block_path, get_blocks, renumber
from offsite.model.heads import head_tensors
from offsite.model.stored import (
    fingerprint,
    is_converted,
    model_fingerprint,
    read_blocks,
    stored_dtype,
    stored_names,
    stored_tensors,
)

ACCELERATE = "ACCELERATE_TORCH_DEVICE"  # the variable that names accelerate's device
IMAGES = "AutoModelForImageClassification"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def parse_dtype(name: str | None) -> torch.dtype | None:
    """``"float32"``, ``"bfloat16"`` or ``"float16"`` as a torch dtype; None stays None.

    Raises:
        OffsiteError: any other name.
    """
    if name is None or name in DTYPES:
        return DTYPES[name] if name else None
    raise OffsiteError(f"'{name}' is no dtype offsite computes in; use {', '.join(DTYPES)}.")


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the accelerator if there is one, or the CPU.

    Raises:
        OffsiteError: the device does not exist here.
    """
    if name is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise OffsiteError(f"There is no device '{name}' here; try --device cpu.") from error


@contextmanager
def accelerator(device: torch.device) -> Iterator[None]:
    """Let accelerate take this device and not the first, for now."""
    before = os.environ.get(ACCELERATE)
    if device.index is not None:
        os.environ[ACCELERATE] = str(device)
    try:
        yield
    finally:
        os.environ.pop(ACCELERATE, None)
        if before is not None:
            os.environ[ACCELERATE] = before


def load_config(name: str | Path, label: str | Path | None = None) -> Any:
    """The configuration of a local folder or a hub model; ``label`` is what messages call it.

    Raises:
        OffsiteError: neither a folder with a ``config.json`` nor a model the hub can deliver, or
            one that needs remote code.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise OffsiteError(f"The folder '{name}' has no config.json, so it holds no model.")
    try:
        return transformers.AutoConfig.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # strict configurations raise types of their own
        reason = (
            "its architecture is not one that transformers knows (remote code is never run)"
            if Path(name).is_dir()
            else "it is no local folder, and no model of that name could be fetched from the hub"
        )
        raise OffsiteError(f"Cannot load the model '{label or name}': {reason}.") from error


def model_config(name: str | Path, auto_class: str) -> Any:
    """The configuration of a checkpoint, as an auto class can build it.

    For an image classifier, that of a bare vision tower (CLIP, SigLIP) is put inside its family's
    whole one, and a checkpoint without a classifier head gets one class, as a place for the head.

    Raises:
        OffsiteError: see :func:`load_config`.
    """
    config = load_config(name)
    if auto_class != IMAGES:
        return config
    for family in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        if getattr(family, "sub_configs", {}).get("vision_config") is type(config):
            config = family(vision_config=config.to_dict(), dtype=config.dtype)
            break
    skeleton = build_skeleton(config, auto_class)
    if not set(head_tensors(skeleton)) & set(stored_names(name, skeleton)):
        config.num_labels = 1
    return config


def load_model(
    name: str | Path,
    auto_class: str = "AutoModelForCausalLM",
    *,
    dtype: torch.dtype | None = None,
    keep: Sequence[int] | None = None,
) -> Any:
    """Load a model in evaluation mode on the CPU, from a local folder or the hub.

    Args:
        name: folder or hub name.
        auto_class: which ``transformers`` auto class builds it.
        dtype: None for the dtype of the checkpoint.
        keep: load only these blocks (ascending positions); never holds more than their tensors
            and one tensor in passing.

    Raises:
        OffsiteError: no such model, no safetensors, or weights that do not fit the architecture.
    """
    config = model_config(name, auto_class)
    if keep is not None or auto_class == IMAGES:
        skeleton = build_skeleton(config, auto_class)
        path, total = block_path(skeleton), skeleton_blocks(skeleton)
        native = dtype or getattr(config, "dtype", None) or stored_dtype(name)
        keep = range(total) if keep is None else keep
        if is_converted(name, skeleton):
            model = load_model(name, auto_class, dtype=dtype)
            return assemble(model, [get_blocks(model)[index] for index in keep], list(keep))
        tensors = read_blocks(name, skeleton, path, keep, native)
        small = build_skeleton(config, auto_class)
        renumber(small, keep)
        return fill_model(small.config, auto_class, tensors, name, dtype=native)
    return _from_pretrained(
        getattr(transformers, auto_class), str(name), config, name, dtype=dtype or "auto"
    )


def fill_model(
    config: Any,
    auto_class: str,
    tensors: dict[str, torch.Tensor],
    label: str | Path,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """A model in evaluation mode made of the given tensors, which are not copied unless cast.

    Args:
        tensors: names as in a checkpoint.
        label: what messages call the checkpoint.
        dtype: None for that of the configuration.

    Raises:
        OffsiteError: the tensors do not fit the architecture.
    """
    build = type(build_skeleton(config, auto_class))
    model = _from_pretrained(build, None, config, label, dtype=dtype or "auto", state_dict=tensors)
    model.name_or_path = model.config._name_or_path = ""
    return model


def _from_pretrained(
    build: Any, name: str | None, config: Any, label: str | Path, **options: Any
) -> Any:
    try:
        with quiet():
            model, info = build.from_pretrained(
                name, config=config, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as error:  # whatever a damaged checkpoint makes the loaders raise
        raise OffsiteError(
            f"Cannot load the weights of '{label}' as {build.__name__}; a complete set of "
            "safetensors weights of a matching architecture is needed."
        ) from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise OffsiteError(
            f"The weights of '{label}' do not fit its architecture: {len(wrong)} tensors are "
            f"missing, unexpected or of another shape, first '{wrong[0]}'."
        )
    return model.eval()


def build_skeleton(config: Any, auto_class: str) -> Any:
    """The model of a configuration on the meta device: every name and shape, no memory."""
    with torch.device("meta"), quiet():
        try:
            return getattr(transformers, auto_class).from_config(copy.deepcopy(config))
        except Exception as error:  # a configuration whose numbers do not fit each other
            raise OffsiteError(
                f"A model of type '{config.model_type}' cannot be built as {auto_class} from its "
                "configuration; choose the task that fits the model."
            ) from error


def skeleton_blocks(skeleton: nn.Module) -> int:
    """How many blocks a model has."""
    return len(skeleton.get_submodule(block_path(skeleton)))  # type: ignore[arg-type]


def checkpoint_fingerprint(name: str | Path, auto_class: str) -> str:
    """:func:`fingerprint` of a checkpoint on disk, reading one tensor at a time."""
    skeleton = build_skeleton(model_config(name, auto_class), auto_class)
    parameters = dict(skeleton.named_parameters())
    if is_converted(name, skeleton):
        return model_fingerprint(load_model(name, auto_class))
    return fingerprint(stored_tensors(name, skeleton, parameters.__contains__))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading reports off the screen; what matters is checked and raised."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
