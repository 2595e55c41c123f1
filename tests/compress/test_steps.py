"""What holds for every step: identity at full size, disk, cache, and a model left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.codec import to_json
from offsite.compress import STEPS, parse_recipe
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
from offsite.compress.step import Context, compress
from offsite.errors import OffsiteError
from offsite.model.blocks import get_blocks
from offsite.model.split import ends, make_split
from tests.support.context import FAMILIES, emulator, generate, logits, through_disk, world
from tests.support.models import vision_model

WHOLE = {
    "rank": [Rank(beta=0.0)],
    "prune": [Prune(keep=1.0)],
    "noise": [Noise(scale=0.0)],
    "gradot": [GradOT(attention=1.0, feed_forward=1.0)],
    "narrow": [Narrow(feed_forward=1.0, groups=1.0)],
    "replace": [LayerReplace(alpha=0.0)],
    "cluster": [Cluster(keep=4), Share()],
    "influence": [Drop(keep=4, by="influence")],
    "angular": [Drop(keep=4, by="angular")],
    "leave_one_out": [Drop(keep=4, by="leave_one_out")],
    "greedy": [Drop(keep=4, by="greedy")],
}
REPLACE = LayerReplace(alpha=0.5, steps=2, rank=3, lr=0.05)
LIGHTER: dict[str, list[Any]] = {
    "share": [Cluster(keep=2), Share()],
    "rank": [Rank(beta=0.8)],
    "rank all": [Rank(beta=0.8, layers="all")],
    "prune": [Prune(keep=0.4)],
    "noise": [Noise(scale=0.5), Quantise(bits=4, group=8)],
    "int8": [Quantise(bits=8)],
    "int4": [Quantise(bits=4, group=8)],
    "gradot": [GradOT(attention=0.4, feed_forward=0.5, batches=1)],
    "narrow": [Narrow(feed_forward=0.5), Align(steps=1, batch_size=2)],
    "replace": [REPLACE],
    "scaleot": [REPLACE, Rank(beta=0.8)],
    "all at once": [
        Drop(keep=3), Share(), REPLACE, Rank(beta=0.7, layers="all"), Prune(keep=0.6),
        Quantise(bits=4, group=8), Distill(steps=1, batch_size=2),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_is_the_model(family: str, name: str) -> None:
    context = world(family)
    assert torch.equal(logits(emulator(context, WHOLE[name])), logits(context.model))


@pytest.mark.parametrize("name", LIGHTER)
@pytest.mark.parametrize("family", FAMILIES)
def test_lighter_middles_survive_disk_and_cache(family: str, name: str, tmp_path: Path) -> None:
    context = world(family)
    before = {key: value.clone() for key, value in context.model.state_dict().items()}
    made, loaded = through_disk(context, LIGHTER[name], tmp_path / "offer")
    assert torch.equal(logits(made.model), logits(loaded.model))
    assert not torch.equal(logits(made.model), logits(context.model))
    assert made.manifest.shared == loaded.manifest.shared
    for model in (made.model, loaded.model):
        assert torch.equal(generate(model, cache=True), generate(model, cache=False))
    after = context.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("family", ["vit", "clip"])
def test_vision_middles_get_lighter_too(family: str) -> None:
    model = vision_model(family)
    context = Context(model, make_split(ends(1, 1), 6))
    for step in (Rank(beta=0.8), Prune(keep=0.5), Quantise(bits=8)):
        assert not torch.equal(logits(emulator(context, [step])), logits(model))


def test_a_shared_block_is_stored_once_and_stays_shared(tmp_path: Path) -> None:
    context = world("llama")
    plain, _ = through_disk(context, [Drop(keep=2)], tmp_path / "plain")
    made, loaded = through_disk(
        context, [Drop(keep=2), Share(), Rank(beta=0.8), Quantise(bits=8)], tmp_path / "shared"
    )
    assert len(get_blocks(loaded.model)) == 6 and len(get_blocks(plain.model)) == 4
    assert made.manifest.shared == {2: 1, 4: 3}
    names = [name for name in made.manifest.tensors if ".layers.2." in name]
    assert names == []
    first, second = get_blocks(loaded.model)[1], get_blocks(loaded.model)[2]
    for one, two in zip(first.state_dict(keep_vars=True).values(),
                        second.state_dict(keep_vars=True).values(), strict=True):  # fmt: skip
        assert one is two


def test_factors_and_codes_make_the_offer_smaller(tmp_path: Path) -> None:
    context = world("llama", hidden_size=64, intermediate_size=128)
    sizes = []
    for index, recipe in enumerate(
        [[], [Rank(beta=0.8)], [GradOT(0.5, 0.5, batches=1)], [Quantise(8)], [Quantise(4)]]
    ):
        made, _ = through_disk(context, recipe, tmp_path / str(index))
        middle = [e.bytes for n, e in made.manifest.tensors.items() if ".layers.2." in n]
        sizes.append(sum(middle))
    whole, rank, gradot, int8, int4 = sizes
    assert rank < whole and 0.45 * whole < gradot < 0.52 * whole
    assert int8 < 0.31 * whole and int4 < 0.19 * whole


@pytest.mark.parametrize("recipe", LIGHTER.values(), ids=LIGHTER)
def test_recipes_are_json(recipe: list[Any]) -> None:
    assert parse_recipe([to_json(step) for step in recipe]) == recipe


def test_wrong_recipes_are_refused() -> None:
    assert set(STEPS) == {cls.kind for cls in STEPS.values()}
    context = world()
    for steps in ("drop", {"kind": "drop", "keep": 2}, [{"kind": "nothing"}], [{"kind": "rank"}],
                  [{"kind": "rank", "beta": 1.0}], [{"kind": "quantise", "bits": 3}],
                  [{"kind": "gradot", "attention": 0}], [{"kind": "prune"}]):  # fmt: skip
        with pytest.raises(OffsiteError):
            parse_recipe(steps)
    with pytest.raises(OffsiteError, match="put 'quantise' last"):
        compress([Quantise(bits=8), Rank(beta=0.5)], context)
    with pytest.raises(OffsiteError, match="put 'gradot' before"):
        compress([GradOT(batches=1), GradOT(batches=1)], context)
