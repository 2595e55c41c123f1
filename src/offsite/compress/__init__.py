"""Compression steps: frozen dataclasses, each a map from a middle to a lighter middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offsite.codec import from_json
from offsite.compress.align import Align
from offsite.compress.crash import Cluster, Share
from offsite.compress.distill import Distill
from offsite.compress.drop import Drop
from offsite.compress.gradot.step import GradOT
from offsite.compress.narrow import Narrow
from offsite.compress.noise import Noise
from offsite.compress.prune import Prune
from offsite.compress.quantise import Quantise
from offsite.compress.rank import Rank
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.step import Step
from offsite.errors import OffsiteError

__all__ = [
    "STEPS",
    "Align",
    "Cluster",
    "Distill",
    "Drop",
    "GradOT",
    "LayerReplace",
    "Narrow",
    "Noise",
    "Prune",
    "Quantise",
    "Rank",
    "Share",
    "Step",
    "parse_recipe",
]

STEPS: Mapping[str, type[Any]] = {
    cls.kind: cls
    for cls in (
        Drop,
        Cluster,
        Share,
        LayerReplace,
        Rank,
        Narrow,
        GradOT,
        Prune,
        Noise,
        Quantise,
        Distill,
        Align,
    )
}


def parse_recipe(steps: Any) -> list[Step]:
    """A recipe from its JSON form, such as ``[{"kind": "drop", "keep": 8}]``.

    Raises:
        OffsiteError: not a list, or a step of an unknown kind or with options it does not have.
    """
    if isinstance(steps, (str, Mapping)) or not isinstance(steps, Sequence):
        raise OffsiteError(
            "This is not a list; write a recipe as a list of steps, such as "
            '[{"kind": "drop", "keep": 8}].'
        )
    return [from_json(STEPS, step, "compression step") for step in steps]
