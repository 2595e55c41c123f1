"""Ready-made recipes for a budget, which is a share of the middle's bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from offsite.compress.align import Align
from offsite.compress.crash import Cluster, Share
from offsite.compress.distill import Distill
from offsite.compress.drop import Drop, Strategy
from offsite.compress.gradot.step import GradOT
from offsite.compress.linears import linears
from offsite.compress.narrow import Narrow
from offsite.compress.noise import Noise
from offsite.compress.prune import Prune
from offsite.compress.quantise import Quantise
from offsite.compress.rank import Rank
from offsite.compress.scaleot.step import LayerReplace
from offsite.compress.step import Step
from offsite.errors import OffsiteError
from offsite.model.blocks import block_config, get_blocks
from offsite.model.checkpoint import Checkpoint
from offsite.model.layers import is_attention, linear_spec
from offsite.model.split import AdapterRule, Split, example_split

BETA = 0.6
SCALE = 0.4
DEPTH = 0.4  # blocks kept are the budget to this power: 20 of 26 at half of the bytes
CHANGES = 4


@dataclass(frozen=True)
class Shape:
    """What a preset must know of a model to meet a budget, looked up when it asks.

    Attributes:
        model: the model, or its skeleton on the meta device.
        split: which of its blocks are adapter.
    """

    model: nn.Module
    split: Split

    @property
    def blocks(self) -> int:
        """How many blocks the middle has."""
        return len(self.split.middle)

    @property
    def block(self) -> nn.Module:
        """The first block of the middle, as an example of all."""
        return get_blocks(self.model)[self.split.middle[0]]

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return int(block_config(self.model).hidden_size)

    @property
    def parameters(self) -> int:
        """Parameters of one middle block."""
        return sum(p.numel() for p in self.block.parameters())

    @property
    def attention(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of each attention projection of a middle block."""
        specs = [linear_spec(layer) for name, layer in linears(self.block) if is_attention(name)]
        return tuple((spec.outputs, spec.inputs) for spec in specs if spec is not None)

    @property
    def itemsize(self) -> int:
        """Bytes of one weight in the checkpoint."""
        dtype = getattr(block_config(self.model), "dtype", None)
        return int((dtype or next(self.block.parameters()).dtype).itemsize)

    @classmethod
    def of(cls, model: Checkpoint, adapter: AdapterRule) -> Shape:
        """The shape of a checkpoint; no weight is read.

        Raises:
            OffsiteError: no such model, or an adapter that does not fit it.
        """
        return cls(model.skeleton, example_split(adapter, model.total))

    def keep(self, share: float) -> int:
        """The number of blocks nearest to a share of them, at least one."""
        return min(self.blocks, max(1, round(share * self.blocks)))


Make = Callable[[Shape, float, str | None], list[Step]]


@dataclass(frozen=True)
class Preset:
    """A recipe for any budget, and one line that describes it."""

    text: str
    make: Make


def _drop(by: Strategy) -> Make:
    return lambda shape, budget, learned: [Drop(keep=shape.keep(budget), by=by)]


def _distil(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    return [Drop(keep=shape.keep(budget)), Distill()]


def _align(by: Strategy) -> Make:
    return lambda shape, budget, learned: [Drop(keep=shape.keep(budget), by=by), Align()]


def _narrow(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    return [_width(shape, budget, "narrow-align"), Align()]


def _both(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    keep = shape.keep(budget**DEPTH)
    width = _width(shape, min(1.0, budget * shape.blocks / keep), "greedy-narrow-align")
    return [Drop(keep=keep, by="greedy"), width, Align(changes=CHANGES)]


def _small(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    step = Quantise(bits=8)
    share = _share(shape, step)
    if budget >= share:
        raise OffsiteError(
            f"A budget of {budget:.3g} holds the whole middle in 8 bits, which is as good as the "
            f"model; use less than {share:.2f}."
        )
    return [*_both(shape, budget / share, learned), step]


def _share(shape: Shape, step: Quantise) -> float:
    """The share of a weight's bytes that is left in fewer bits, with the scales."""
    return step.bits / 8 / shape.itemsize + 1 / step.group


def _width(shape: Shape, budget: float, preset: str) -> Narrow:
    """Narrow feed-forwards that leave each block a share of its bytes."""
    attention = sum(m * n for m, n in shape.attention) / shape.parameters
    share = (budget - attention) / (1 - attention)
    if share <= 0:
        raise OffsiteError(
            f"A budget of {budget:.3g} of each block leaves no feed-forward channels: attention "
            f"alone takes {attention:.0%}, and '{preset}' keeps it whole; use a larger budget."
        )
    return Narrow(feed_forward=share)


def _crash(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    return [Cluster(keep=shape.keep(budget)), Share()]


def _replace(beta: float) -> Make:
    def make(shape: Shape, budget: float, learned: str | None) -> list[Step]:
        step = LayerReplace(alpha=0.0, learned=learned)
        dense = sum(m * n for m, n in shape.attention)
        thin = sum(
            min(m * n, max(1, round((1 - beta) * min(m, n))) * (m + n)) for m, n in shape.attention
        )
        block = 1 - (dense - thin) / shape.parameters
        harmonizer = 2 * shape.hidden * step.rank / shape.parameters
        real = shape.keep((budget - harmonizer) / (block - harmonizer))
        recipe: list[Step] = [LayerReplace(alpha=1 - real / shape.blocks, learned=learned)]
        return [*recipe, Rank(beta=beta)] if beta else recipe

    return make


def _gradot(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    return [GradOT(attention=budget, feed_forward=budget)]


def _prune(shape: Shape, budget: float, learned: str | None) -> list[Step]:
    return [Prune(keep=budget)]


def _quantise(bits: int, *before: Step) -> Make:
    def make(shape: Shape, budget: float, learned: str | None) -> list[Step]:
        step = Quantise(bits=bits)  # type: ignore[arg-type]
        keep = shape.keep(budget / _share(shape, step))
        fewer: list[Step] = [] if keep == shape.blocks else [Drop(keep=keep)]
        return [*fewer, *before, step]

    return make


PRESETS: dict[str, Preset] = {
    "uniform": Preset("evenly spaced blocks (Offsite-Tuning); needs alignment", _drop("uniform")),
    "random": Preset("blocks at random; needs alignment", _drop("random")),
    "influence": Preset(
        "blocks of highest block influence (ShortGPT); needs alignment", _drop("influence")
    ),
    "angular": Preset(
        "all but the run of least angular distance; needs alignment", _drop("angular")
    ),
    "leave-one-out": Preset(
        "blocks whose absence costs most; needs alignment", _drop("leave_one_out")
    ),
    "influence-align": Preset(
        "blocks of highest influence, then aligned (ours)", _align("influence")
    ),
    "greedy-narrow-align": Preset(
        "fewer blocks and fewer channels, then aligned at changes (ours)", _both
    ),
    "greedy-narrow-align-int8": Preset("the same, then in 8-bit weights (ours)", _small),
    "narrow-align": Preset("fewer channels in every block, then aligned (LoRAM)", _narrow),
    "distil": Preset("evenly spaced blocks, then distilled (Offsite-Tuning)", _distil),
    "crash": Preset("one block per cluster, shared by reference (CRaSh)", _crash),
    "scaleot": Preset("harmonizers and low-rank attention (ScaleOT)", _replace(BETA)),
    "scaleot-replace": Preset("harmonizers alone (ScaleOT without rank)", _replace(0.0)),
    "gradot": Preset("singular values and channels the gradient needs (GradOT)", _gradot),
    "prune": Preset("magnitude pruning; as lossy, but no smaller", _prune),
    "int8": Preset("8-bit weights; fewer blocks where the budget asks", _quantise(8)),
    "int4": Preset("4-bit weights; fewer blocks where the budget asks", _quantise(4)),
    "noise": Preset(
        "keyed noise in 4-bit weights (ours); does not protect, for comparison",
        _quantise(4, Noise(scale=SCALE)),
    ),
}


def make_recipe(
    name: str, shape: Shape, budget: float, *, learned: str | None = None
) -> list[Step]:
    """The steps of a preset.

    Args:
        name: one of :data:`PRESETS`.
        shape: of the model that is cut.
        budget: share of the middle's bytes, over 0 to 1; met to the nearest block.
        learned: folder of a LayerReplace pass, so that ScaleOT does not run it again.

    Raises:
        OffsiteError: an unknown preset, or a budget out of range.
    """
    check_preset(name)
    if not 0 < budget <= 1:
        raise OffsiteError(
            f"A budget of {budget} is not a share of the middle's bytes; use more than 0 and at "
            "most 1."
        )
    return PRESETS[name].make(shape, budget, learned)


def check_preset(name: str) -> None:
    """Refuse a name that is not a preset.

    Raises:
        OffsiteError: naming those that there are.
    """
    if name not in PRESETS:
        raise OffsiteError(f"'{name}' is not a preset; choose one of: {', '.join(PRESETS)}.")
