"""Alignment: its loss against plain loops, what it may touch, and what it says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.align import Align, outlets, parts, state_error, verdict
from offsite.compress.drop import Drop
from offsite.compress.step import compress
from offsite.errors import OffsiteError
from offsite.model.replay import Call
from offsite.model.split import Split, ends, join, whole_middle
from offsite.owner.offering import make_offer
from offsite.tasks.text.causal import CausalText
from offsite.training.resume import Interrupted
from tests.support.context import emulator, logits, rows, world
from tests.support.models import language_model, plain_divergence
from tests.support.signals import Interrupt


def call(output: torch.Tensor, real: torch.Tensor | None = None) -> Call:
    return Call(torch.empty(0), (), {}, output, real)


def test_the_error_of_states_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    target, state = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    real = torch.tensor([[True, True, False], [True, False, False]])
    tokens = [(b, t) for b in range(2) for t in range(3) if real[b, t]]
    relative = [(target[i] - state[i]).norm() / target[i].norm() for i in tokens]
    squares = [(target[i] - state[i]).square().mean() for i in tokens]
    powers = [target[i].square().mean() for i in tokens]
    expected = sum(relative) / len(tokens) + sum(squares) / sum(powers)
    assert torch.isclose(state_error(state, call(target, real)), torch.as_tensor(expected))
    assert state_error(target, call(target)) == 0


def test_a_whole_middle_has_nothing_to_align() -> None:
    context = world()
    made = emulator(context, [Align(steps=2, batch_size=2, kl_weight=0.0)])
    assert torch.equal(logits(made), logits(context.model))


@pytest.mark.parametrize("adapter", [(0, -1), (0, 2, -1)], ids=["ends", "interior"])
def test_aligning_brings_the_predictions_nearer_and_touches_only_the_middle(
    adapter: tuple[int, ...],
) -> None:
    context = world(adapter=adapter)
    before = {name: p.clone() for name, p in context.model.named_parameters()}
    dropped = compress([Drop(keep=2)], context)
    aligned = Align(steps=30, lr=3e-3, batch_size=8)(dropped, context)
    far, near = (
        plain_divergence(logits(join(context.model, context.split, m)[0]), logits(context.model))
        for m in (dropped, aligned)
    )
    assert near < 0.7 * far
    assert all(torch.equal(p, before[name]) for name, p in context.model.named_parameters())
    assert aligned.positions == dropped.positions
    assert not any(p.requires_grad for block in aligned.blocks for p in block.parameters())


def test_every_run_of_middle_blocks_has_one_outlet() -> None:
    split = Split((0, 3, 6), 7)
    assert outlets(split, (1, 2, 4, 5)) == [(2, 2), (5, 5)]
    assert outlets(split, (2, 4)) == [(2, 1), (5, 3)]
    assert outlets(split, (4,)) == [(2, 0), (5, 2)]  # nothing stands in the first run
    assert outlets(Split((3,), 4), ()) == []


def test_rows_are_held_out() -> None:
    learn, held = parts(rows(40))
    assert (len(learn), len(held)) == (38, 2)
    with pytest.raises(OffsiteError, match="needs at least two rows of data, and there is 1"):
        parts(rows(1))


def test_it_says_when_it_stopped_paying() -> None:
    falling = [(10, 4.0), (20, 3.0), (30, 2.0)]
    assert "still fell at step 30 (2.000); more may help" in verdict(falling)
    flat = [(10, 4.0), (20, 2.01), (30, 2.0)]
    assert "stopped paying at step 20 of 30" in verdict(flat)
    assert "never fell below its first value" in verdict([(10, 2.0), (20, 3.0)])
    assert "too few steps" in verdict(falling[:1])


def test_alignment_needs_data_and_a_weight() -> None:
    context = world()
    with pytest.raises(OffsiteError, match="give it with --data"):
        Align()(whole_middle(context.model, context.split), world().__class__(
            context.model, context.split
        ))  # fmt: skip
    with pytest.raises(OffsiteError, match="leave nothing to align"):
        Align(state_weight=0, kl_weight=0)


def test_an_interrupted_alignment_goes_on_bit_for_bit(interrupt: Interrupt, tmp_path: Path) -> None:
    def make(**more: Any) -> dict[str, torch.Tensor]:
        recipe: list[Any] = [Drop(keep=2), Align(steps=6, lr=1e-3, batch_size=2)]
        offer, _ = make_offer(
            language_model("llama"), adapter=ends(1, 1), recipe=recipe, data=rows(), device="cpu",
            **more,
        )  # fmt: skip
        return {name: value.clone() for name, value in offer.model.state_dict().items()}

    straight = make(task=CausalText(max_length=16))
    interrupt(CausalText, "collate", call=5)
    with pytest.raises(Interrupted, match=r"of 6; .* --resume to continue"):
        make(task=CausalText(max_length=16), work=tmp_path / "work")
    resumed = make(task=CausalText(max_length=16), work=tmp_path / "work", resume=True)
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())
