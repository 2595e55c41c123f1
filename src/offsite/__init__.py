"""offsite: fine-tune a model without showing it to the data owner, or the data to its owner.

Every public name is loaded on first use, so ``import offsite`` costs nothing. Type checkers see the
same names below; a test holds the two lists together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from offsite.compress.align import Align as Align
    from offsite.compress.crash import Cluster as Cluster
    from offsite.compress.crash import Share as Share
    from offsite.compress.distill import Distill as Distill
    from offsite.compress.drop import Drop as Drop
    from offsite.compress.gradot.step import GradOT as GradOT
    from offsite.compress.narrow import Narrow as Narrow
    from offsite.compress.noise import Noise as Noise
    from offsite.compress.prune import Prune as Prune
    from offsite.compress.quantise import Quantise as Quantise
    from offsite.compress.rank import Rank as Rank
    from offsite.compress.recipe import Recipe as Recipe
    from offsite.compress.scaleot.step import LayerReplace as LayerReplace
    from offsite.deltas.addition.bottleneck import Bottleneck as Bottleneck
    from offsite.deltas.addition.intrinsic_prompt import IntrinsicPrompt as IntrinsicPrompt
    from offsite.deltas.addition.learn_decoder import learn_decoder as learn_decoder
    from offsite.deltas.addition.prefix import Prefix as Prefix
    from offsite.deltas.addition.prompt import Prompt as Prompt
    from offsite.deltas.combined import Combined as Combined
    from offsite.deltas.reparameterisation.fourier import FourierFT as FourierFT
    from offsite.deltas.reparameterisation.ia3 import IA3 as IA3
    from offsite.deltas.reparameterisation.intrinsic import IntrinsicDimension as IntrinsicDimension
    from offsite.deltas.reparameterisation.loha import LoHa as LoHa
    from offsite.deltas.reparameterisation.lokr import LoKr as LoKr
    from offsite.deltas.reparameterisation.lora import LoRA as LoRA
    from offsite.deltas.reparameterisation.oft import OFT as OFT
    from offsite.deltas.reparameterisation.vera import VeRA as VeRA
    from offsite.deltas.specification.bitfit import BitFit as BitFit
    from offsite.deltas.specification.diff_pruning import DiffPruning as DiffPruning
    from offsite.deltas.specification.full import Full as Full
    from offsite.deltas.specification.head import Head as Head
    from offsite.deltas.specification.masking import Masking as Masking
    from offsite.errors import OffsiteError as OffsiteError
    from offsite.exchange.delta import Delta as Delta
    from offsite.exchange.offer import Offer as Offer
    from offsite.exchange.record import Record as Record
    from offsite.lab.lab import Lab as Lab
    from offsite.lab.plan import Plan as Plan
    from offsite.model.split import Middle as Middle
    from offsite.model.split import Split as Split
    from offsite.model.split import ends as ends
    from offsite.owner.offering import make_offer as make_offer
    from offsite.owner.plugging import plug as plug
    from offsite.owner.serving import Served as Served
    from offsite.owner.serving import load_plugged as load_plugged
    from offsite.scores.scores import Scores as Scores
    from offsite.tasks import load_task as load_task
    from offsite.training.options import TrainOptions as TrainOptions
    from offsite.tuner.tuning import Tuned as Tuned
    from offsite.tuner.tuning import run_tune as run_tune
    from offsite.tuner.tuning import tune as tune
else:
    from importlib import import_module

    def __getattr__(name: str) -> object:
        if name not in _WHERE:
            raise AttributeError(f"module 'offsite' has no attribute '{name}'")
        return getattr(import_module(f"offsite.{_WHERE[name]}"), name)


_HOMES = {
    "compress.crash": "Cluster Share",
    "compress.align": "Align",
    "compress.distill": "Distill",
    "compress.narrow": "Narrow",
    "compress.drop": "Drop",
    "compress.gradot.step": "GradOT",
    "compress.noise": "Noise",
    "compress.prune": "Prune",
    "compress.quantise": "Quantise",
    "compress.rank": "Rank",
    "compress.recipe": "Recipe",
    "compress.scaleot.step": "LayerReplace",
    "deltas.addition.bottleneck": "Bottleneck",
    "deltas.addition.intrinsic_prompt": "IntrinsicPrompt",
    "deltas.addition.learn_decoder": "learn_decoder",
    "deltas.addition.prefix": "Prefix",
    "deltas.addition.prompt": "Prompt",
    "deltas.combined": "Combined",
    "deltas.reparameterisation.fourier": "FourierFT",
    "deltas.reparameterisation.ia3": "IA3",
    "deltas.reparameterisation.intrinsic": "IntrinsicDimension",
    "deltas.reparameterisation.loha": "LoHa",
    "deltas.reparameterisation.lokr": "LoKr",
    "deltas.reparameterisation.lora": "LoRA",
    "deltas.reparameterisation.oft": "OFT",
    "deltas.reparameterisation.vera": "VeRA",
    "deltas.specification.bitfit": "BitFit",
    "deltas.specification.diff_pruning": "DiffPruning",
    "deltas.specification.full": "Full",
    "deltas.specification.head": "Head",
    "deltas.specification.masking": "Masking",
    "errors": "OffsiteError",
    "exchange.delta": "Delta",
    "exchange.offer": "Offer",
    "exchange.record": "Record",
    "lab.lab": "Lab",
    "lab.plan": "Plan",
    "model.split": "Middle Split ends",
    "owner.offering": "make_offer",
    "owner.plugging": "plug",
    "owner.serving": "Served load_plugged",
    "scores.scores": "Scores",
    "tasks": "load_task",
    "training.options": "TrainOptions",
    "tuner.tuning": "Tuned run_tune tune",
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __dir__() -> list[str]:
    return __all__
