"""What LayerReplace learnt: scores and harmonizers of every block, saved and loaded.

Weights are safetensors, everything else is JSON; one training pass serves emulators of every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from offsite.codec import validate
from offsite.compress.step import Context
from offsite.errors import OffsiteError
from offsite.files import new_folder, read_json, write_file
from offsite.model.layers import Harmonizer, HarmonizerSpec
from offsite.model.stored import model_fingerprint
from offsite.model.tensors import load_tensors, save_tensors

WEIGHTS, META, STATE = "harmonizers.safetensors", "learned.json", "layer-replace"


class _Meta(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["learned"] = "learned"
    schema_version: Literal[1] = 1
    fingerprint: str
    scores: tuple[float, ...]
    harmonizer: HarmonizerSpec


class _StateMeta(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["layer_replace_state"] = "layer_replace_state"
    step: int


@dataclass(frozen=True)
class Learned:
    """The result of :func:`offsite.compress.scaleot.learning.learn`.

    Attributes:
        scores: one number per block of the model; larger is more important.
        harmonizers: for each block, what replaces it.
        fingerprint: of the model they were learned on.
    """

    scores: tuple[float, ...]
    harmonizers: nn.ModuleList
    fingerprint: str

    def save(self, folder: str | Path) -> None:
        """Write the result as a new folder.

        Raises:
            OffsiteError: the folder exists.
        """
        first = self.harmonizers[0]
        assert isinstance(first, Harmonizer)
        meta = _Meta(fingerprint=self.fingerprint, scores=self.scores, harmonizer=first.spec)
        with new_folder(folder) as partial:
            save_tensors(self.harmonizers.state_dict(), partial / WEIGHTS)
            write_file(partial / META, meta.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None) -> Learned:
        """Read a result, and check that it was learned on ``model`` when that is given.

        Raises:
            OffsiteError: no such result, damaged, or learned on another model.
        """
        folder = Path(folder)
        meta: _Meta = validate(_Meta, read_json(folder / META), folder / META)
        if model is not None and model_fingerprint(model) != meta.fingerprint:
            raise OffsiteError(
                f"'{folder}' was learned on another model; learn scores and harmonizers afresh."
            )
        spec = meta.harmonizer
        harmonizers = nn.ModuleList(
            Harmonizer(spec.hidden, spec.rank, spec.tuple) for _ in meta.scores
        )
        fill(harmonizers, load_tensors([folder / WEIGHTS]), folder)
        return cls(meta.scores, harmonizers.requires_grad_(False), meta.fingerprint)


@dataclass
class State:
    """Where a run of LayerReplace stands; ``scores`` is float64 on the CPU."""

    step: int
    scores: torch.Tensor
    harmonizers: nn.ModuleList
    optimiser: torch.optim.AdamW


def write_state(work: Path, state: State) -> None:
    """Replace the resumable state in a work folder."""
    tensors = {"scores": state.scores}
    for name, parameter in state.harmonizers.named_parameters():
        tensors[f"weight.{name}"] = parameter
        for key, value in state.optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    with new_folder(work / STATE, overwrite=True) as partial:
        save_tensors(tensors, partial / WEIGHTS)
        meta = _StateMeta(step=state.step)
        write_file(partial / META, meta.model_dump_json(indent=1) + "\n")


def read_state(context: Context, state: State) -> None:
    """Continue from the state in the context's work folder, in place.

    Nothing happens where a run was killed before it wrote any: it starts from the beginning.

    Raises:
        OffsiteError: the state is damaged.
    """
    if context.work is None or not (context.work / STATE).is_dir():
        return
    folder = context.work / STATE
    meta: _StateMeta = validate(_StateMeta, read_json(folder / META), folder / META)
    tensors = load_tensors([folder / WEIGHTS])
    state.step, state.scores = meta.step, tensors.pop("scores")
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    fill(state.harmonizers, weights, folder)
    for name, parameter in state.harmonizers.named_parameters():
        if f"step.{name}" in tensors:
            state.optimiser.state[parameter] = {
                "step": tensors[f"step.{name}"],
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
            }


def fill(harmonizers: nn.ModuleList, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Copy tensors into harmonizers.

    Raises:
        OffsiteError: they are not of these names and shapes.
    """
    try:
        harmonizers.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise OffsiteError(
            f"'{folder}' does not hold the harmonizers it describes; learn them again."
        ) from error
