"""offsite: fine-tune a model without its owner seeing the data, or the data's owner the model.

Every public name is loaded on first use, so ``import offsite`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "errors": "OffsiteError",
    "owner": "make_offer plug",
    "tuner": "tune run_tune",
    "offer": "Offer",
    "delta": "Delta",
    "record": "Record",
    "split": "ends Split Middle",
    "scores": "Scores",
    "train": "TrainOptions",
    "serve": "load_plugged Served",
    "deltas.learn_decoder": "learn_decoder",
    "tasks": "load_task",
    "plan": "Plan",
    "lab": "Lab",
    "compress.drop": "Drop",
    "compress.distill": "Distill",
    "compress.crash": "Cluster Share",
    "compress.scaleot": "LayerReplace",
    "compress.rank": "Rank",
    "compress.gradot": "GradOT",
    "compress.prune": "Prune",
    "compress.noise": "Noise",
    "compress.quantise": "Quantise",
    "deltas": (
        "Full LoRA IA3 LoHa LoKr VeRA OFT FourierFT Bottleneck Prefix Prompt IntrinsicPrompt "
        "BitFit DiffPruning Masking IntrinsicDimension Head Combined"
    ),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from offsite.compress.crash import Cluster as Cluster
    from offsite.compress.crash import Share as Share
    from offsite.compress.distill import Distill as Distill
    from offsite.compress.drop import Drop as Drop
    from offsite.delta import Delta as Delta
    from offsite.errors import OffsiteError as OffsiteError
    from offsite.offer import Offer as Offer
    from offsite.owner import make_offer as make_offer
    from offsite.owner import plug as plug
    from offsite.record import Record as Record
    from offsite.split import ends as ends
    from offsite.tuner import tune as tune


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'offsite' has no attribute '{name}'")
    return getattr(import_module(f"offsite.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
