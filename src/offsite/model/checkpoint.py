"""A model by name: its configuration, its weights, and the models built from them.

Only safetensors are read, remote code is never run, and a checkpoint that does not fit its model
exactly is refused: transformers would fill what is missing with random values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from offsite.errors import OffsiteError
from offsite.model.blocks import block_path, get_blocks, renumber
from offsite.model.configuration import load_config, load_generation, misfit
from offsite.model.judge import judge
from offsite.model.kind import IMAGE, TEXT, Kind, kind_of_class, kind_of_task, text_config
from offsite.model.movable import check_movable
from offsite.model.per_block import find_parts, take_parts
from offsite.model.processor import read_processor
from offsite.model.quiet import quiet as quiet
from offsite.model.stored import StoredModel

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
    raise OffsiteError(
        f"'{name}' is not a dtype that offsite computes in; use {', '.join(DTYPES)}."
    )


@dataclass(frozen=True)
class Checkpoint:
    """A model by folder or hub name; whatever is asked of it is read once.

    Attributes:
        name: folder or hub name.
        kind: whether it reads text or images.
    """

    name: str
    kind: Kind = TEXT

    @classmethod
    def of(cls, name: str | Path, auto_class: str) -> Checkpoint:
        """The model by this name, as this auto class builds it."""
        return cls(str(name), kind_of_class(auto_class))

    @cached_property
    def config(self) -> Any:
        """The configuration, as the kind's auto class can build it.

        For an image classifier, that of a bare vision tower (CLIP, SigLIP) is put inside its
        family's whole one.

        Raises:
            OffsiteError: see :func:`load_config`.
        """
        config = load_config(self.name)
        if self.kind is IMAGE:
            for family in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
                if getattr(family, "sub_configs", {}).get("vision_config") is type(config):
                    return family(vision_config=config.to_dict(), dtype=config.dtype)
        return config

    @cached_property
    def stored(self) -> StoredModel:
        """The weights on disk, judged by their headers; see :func:`offsite.model.judge.judge`.

        An image model without a classifier head gets one class, as a place for the head.

        Raises:
            OffsiteError: weights that do not fit, or a configuration of another kind of model.
        """
        build = self.kind.model_class(self.config)
        if build is None:
            raise wrong_kind(self.config, self.kind.auto_class)
        text = self.config.sub_configs.get("text_config")
        own = text is not None and build.config_class is text
        config = copy.deepcopy(text_config(self.config) if own else self.config)
        with quiet():
            stored = judge(self.name, config, build)
            if stored.empty:
                config.num_labels = 1
                stored = judge(self.name, config, build)
        return stored

    @property
    def skeleton(self) -> Any:
        """The model on the meta device, exactly as transformers loads it."""
        return self.stored.skeleton

    @property
    def total(self) -> int:
        """How many blocks the model has."""
        return len(get_blocks(self.skeleton))

    @property
    def outline(self) -> Any:
        """The model on the meta device by its configuration alone, made anew each time.

        Raises:
            OffsiteError: a configuration of another kind of model.
        """
        return build_skeleton(self.config, self.kind.auto_class)

    @cached_property
    def fingerprint(self) -> str:
        """The name of these weights; every tensor is read once."""
        return self.stored.fingerprint()

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or image processor, or None where the model comes without."""
        return read_processor(self.name, self.kind, config=self.config)

    def load(self, *, keep: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Any:
        """The model in evaluation mode on the CPU.

        Args:
            keep: load only these blocks (ascending positions); never holds more than their tensors
                and one tensor in passing.
            dtype: to convert to after loading; None for the dtype that transformers chooses.

        Raises:
            OffsiteError: weights that do not fit, or blocks that this family cannot leave out.
        """
        config = copy.deepcopy(self.skeleton.config)
        own = next(self.skeleton.parameters()).dtype
        kept = None
        if keep is None or list(keep) == list(range(self.total)):
            tensors = self.stored.source()
        else:
            kept, smaller = (keep, self.total), copy.deepcopy(self.skeleton)
            renumber(smaller, keep)
            config, tensors = smaller.config, self.stored.blocks(keep)
        model = fill_model(type(self.skeleton), config, tensors, self.name, dtype=own, kept=kept)
        if kept is not None:
            check_movable(list(get_blocks(self.skeleton)), list(get_blocks(model)), kept[0])
        if model.can_generate() and (generation := load_generation(self.name)) is not None:
            model.generation_config = generation
        return model.to(dtype) if dtype else model


def load_model(
    name: str | Path,
    auto_class: str = "AutoModelForCausalLM",
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """:meth:`Checkpoint.load` of a folder or hub name."""
    return Checkpoint.of(name, auto_class).load(dtype=dtype)


def load_processor(name: str | Path, task: str) -> Any:
    """:attr:`Checkpoint.processor` of a folder or hub name, for the kind of data of a task."""
    return Checkpoint.of(name, kind_of_task(task).auto_class).processor


def fill_model(
    build: Any,
    config: Any,
    tensors: dict[str, Any],
    label: str | Path,
    *,
    dtype: torch.dtype | None = None,
    kept: tuple[Sequence[int], int] | None = None,
) -> Any:
    """A model in evaluation mode made of the given tensors, which are not copied unless cast.

    Args:
        build: the transformers class of the model.
        tensors: names as in a checkpoint.
        label: what messages call the checkpoint.
        dtype: None for that of the configuration.
        kept: where blocks were left out, those that stay and how many there were: a tensor that
            holds a part for every block is cut to theirs.

    Raises:
        OffsiteError: the tensors do not fit the architecture.
    """
    try:
        with quiet():
            model, info = build.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype or "auto",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever damaged tensors make the loaders raise
        raise OffsiteError(
            f"The weights of '{label}' cannot be loaded as {build.__name__}; use a complete set of "
            "safetensors weights of the same model."
        ) from error
    if kept is not None and (wrong := info["mismatched_keys"]):
        found = find_parts(
            {n: f for n, f, _ in wrong}, {n: c for n, _, c in wrong}, kept[1], len(kept[0])
        )
        if len(found) == len(wrong):
            fitting = {n: take_parts(tensors[n], dim, kept[1], kept[0]) for n, dim in found.items()}
            return fill_model(build, config, {**tensors, **fitting}, label, dtype=dtype)
    wrong = [*info["mismatched_keys"], *info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        first = wrong[0] if isinstance(wrong[0], str) else wrong[0][0]
        if kept:
            raise cannot_move(first, first.startswith(f"{block_path(model)}."))
        raise OffsiteError(
            f"The weights of '{label}' do not fit its architecture: {len(wrong)} tensors are "
            f"missing, unexpected or of another shape, first '{first}'; use the config.json of the "
            "same model."
        )
    model.name_or_path = model.config._name_or_path = ""
    return model.eval()


def cannot_move(name: str, in_block: bool) -> OffsiteError:
    """The refusal of a family that builds other tensors for another number of blocks."""
    return OffsiteError(
        f"This family builds another '{name}' where blocks are left out: "
        + (
            "its blocks differ by position and cannot move"
            if in_block
            else "outside the blocks it holds a part for every one of them"
        )
        + "; use a recipe that keeps every block, or --whole."
    )


def build_skeleton(config: Any, auto_class: str) -> Any:
    """The model of a configuration on the meta device: every name and shape, no memory."""
    with torch.device("meta"), quiet():
        try:
            return getattr(transformers, auto_class).from_config(copy.deepcopy(config))
        except OffsiteError:  # a limit that the caller set, as for an offer
            raise
        except Exception as error:  # a configuration whose numbers do not fit each other
            raise misfit(config, auto_class, error) or wrong_kind(config, auto_class) from error


def wrong_kind(config: Any, auto_class: str) -> OffsiteError:
    """The refusal of a configuration that an auto class cannot build."""
    return OffsiteError(
        f"A model of type '{config.model_type}' cannot be built as {auto_class} from its "
        "configuration; choose the task that fits the model."
    )
