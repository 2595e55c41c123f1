"""LayerReplace: what is drawn, what is updated, what is saved, what is built from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.compress.rank import Rank
from offsite.compress.scaleot import learning as layer_replace
from offsite.compress.scaleot.learned import Learned
from offsite.compress.scaleot.learning import hold_out, learn, rewards, sample, update
from offsite.compress.scaleot.step import LayerReplace, replaceable, resolve_adapter, scaleot
from offsite.compress.scaleot.training import Training
from offsite.compress.step import compress
from offsite.errors import OffsiteError
from offsite.model.blocks import assemble, get_blocks
from offsite.model.checkpoint import Checkpoint
from offsite.model.layers import Harmonizer
from offsite.model.replay import forward, observe, record_calls
from offsite.model.split import Positions, ends, learned, parse_adapter, whole_middle
from tests.support.context import FAMILIES, emulator, generate, logits, world
from tests.support.models import language_model

QUICK = Training(steps=3, rank=3, lr=0.05, batch_size=2, save_every=1)


def test_half_of_every_group_stays_and_likelier_blocks_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([2.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0], dtype=torch.float64)
    draws = torch.tensor([sample(scores, generator) for _ in range(4000)], dtype=torch.float64)
    assert draws[:, :4].sum(1).eq(2).all() and draws[:, 4:8].sum(1).eq(2).all()
    assert draws[:, 8:].sum(1).eq(1).all()
    share = draws.mean(0)
    assert share[4:8].sub(0.5).abs().max() < 0.03  # equal scores, equal chances
    # of a pair: P(u p > v q) = 1 - q / 2p for p > q
    p, q = scores[8:].sigmoid().tolist()
    assert share[8].item() == pytest.approx(1 - q / (2 * p), abs=0.03)
    expected = slow_shares(scores[:4].sigmoid().tolist())
    assert share[:4].tolist() == pytest.approx(expected, abs=0.03)


def slow_shares(p: list[float]) -> list[float]:
    """Chance of each of four to be among the two largest ``u p``, by drawing one at a time."""
    generator = torch.Generator().manual_seed(1)
    counts = [0] * 4
    for _ in range(4000):
        values = [torch.rand(1, generator=generator).item() * x for x in p]
        for i in sorted(range(4), key=lambda i: values[i])[2:]:
            counts[i] += 1
    return [count / 4000 for count in counts]


def test_the_policy_gradient_step_by_hand() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    new = update(scores, [True, False, True], reward=0.5, eta=2.0)
    sigmoid = 1 / (1 + torch.tensor(1.0, dtype=torch.float64).exp())  # of -1
    assert new.tolist() == pytest.approx(
        [0 + 2 * 0.5 * 0.25, 1.0, -1 + 2 * 0.5 * (sigmoid * (1 - sigmoid)).item()]
    )
    losses = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
    value = (-losses).exp()
    assert rewards(losses).tolist() == pytest.approx(
        ((value - value.mean()) / value.mean()).tolist()
    )
    assert rewards(losses + 1000).tolist() == pytest.approx(rewards(losses).tolist())


def test_a_useless_block_ends_with_the_lowest_score() -> None:
    context = world("llama")
    with torch.no_grad():
        for position, block in enumerate(get_blocks(context.model)):
            for name in ("self_attn.o_proj", "mlp.down_proj"):  # what a block adds to its input
                layer: Any = block.get_submodule(name)
                layer.weight.mul_(0.0 if position == 2 else 4.0)
        model = context.model
        data: Any = context.data
        rows: Any = [
            {
                "input_ids": r["input_ids"],
                "labels": model(r["input_ids"][None]).logits[0].argmax(-1),
            }
            for r in data
        ]
        rows = [{**r, "labels": torch.cat([r["labels"][:1] * 0, r["labels"][:-1]])} for r in rows]
    learned = learn(replace(context, data=rows), replace(QUICK, steps=60, lr=1e-6, eta=5.0))
    group = learned.scores[:4]
    assert min(group) == group[2]


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_only_harmonizers_learn_and_resuming_is_exact(family: str, tmp_path: Path) -> None:
    context = world(family)
    before = {key: value.clone() for key, value in context.model.state_dict().items()}
    whole = learn(context, QUICK)
    harmonizers: Any = whole.harmonizers
    assert any(h.up.weight.abs().sum() > 0 for h in harmonizers)
    assert all(torch.equal(context.model.state_dict()[k], v) for k, v in before.items())
    parted = replace(context, work=tmp_path)
    learn(parted, replace(QUICK, steps=1))
    resumed = learn(replace(parted, resume=True), QUICK)
    assert resumed.scores == whole.scores
    for one, two in zip(
        resumed.harmonizers.parameters(), whole.harmonizers.parameters(), strict=True
    ):
        assert torch.equal(one, two)
    with pytest.raises(OffsiteError, match="started with another rank"):
        learn(replace(parted, resume=True), replace(QUICK, rank=2))
    with pytest.raises(OffsiteError, match="nothing to resume"):
        learn(replace(context, work=tmp_path / "none", resume=True), QUICK)


def test_one_pass_makes_emulators_of_every_size(tmp_path: Path) -> None:
    context = world("llama", ends(2, 1))
    learned = learn(context, QUICK)
    learned.save(tmp_path / "learned")
    again = Learned.load(tmp_path / "learned", context.model)
    assert again.scores == learned.scores and again.fingerprint == learned.fingerprint
    adapter, recipe = scaleot(str(tmp_path / "learned"), again.scores, 2, alpha=0.5, beta=0.8)
    ranked = sorted(range(6), key=lambda p: again.scores[p])
    assert set(adapter) == set(ranked[-2:]) and recipe[1] == Rank(beta=0.8)
    for alpha, count in ((0.0, 0), (1 / 3, 1), (2 / 3, 2), (1.0, 3)):
        step = LayerReplace(alpha=alpha, learned=str(tmp_path / "learned"))
        middle = compress([step], context)
        replaced = [
            p
            for p, b in zip(middle.positions, middle.blocks, strict=True)
            if isinstance(b, Harmonizer)
        ]
        assert (
            sorted(replaced, key=lambda p: learned.scores[p])
            == [p for p in ranked if p in (2, 3, 4)][:count]
        )
    with pytest.raises(OffsiteError, match="another model"):
        Learned.load(tmp_path / "learned", world("llama", seed=9).model)
    for count in (0, 6):
        with pytest.raises(OffsiteError, match="choose 1 to 5"):
            scaleot("learned", again.scores, count, 0.5, 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_block_of_each_kind_of_attention_stays(family: str) -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"] * 3
    changes = {"layer_types": kinds} if family == "gemma3" else {}
    context = world(family, (5,), **changes)
    first = (0, 3) if family == "gemma3" else (0,)
    expected = tuple(p for p in range(5) if p not in first)
    assert replaceable(whole_middle(context.model, context.split), context) == expected
    step = LayerReplace(alpha=1.0, steps=1, rank=2, lr=0.1)
    model = emulator(context, [step])
    kinds_found = [isinstance(block, Harmonizer) for block in get_blocks(model)]
    assert kinds_found == [p in expected for p in range(6)]
    assert torch.equal(generate(model, cache=True), generate(model, cache=False))


def test_fresh_harmonizers_change_nothing_but_the_blocks_they_replace() -> None:
    context = world("gpt2")
    model = emulator(context, [LayerReplace(alpha=1.0, steps=1, lr=1e-12)])
    short = world("gpt2")
    kept = [get_blocks(short.model)[0], get_blocks(short.model)[5]]
    assert len(kept) == 2
    assert torch.allclose(logits(model), logits(assemble(short.model, kept, [0, 5])), atol=1e-5)


def test_data_is_held_out_and_needed() -> None:
    context = world()
    learning, validation = hold_out(context)
    assert len(learning.data) == 22 and len(validation.data) == 2  # type: ignore[arg-type]
    assert layer_replace.HOLD_OUT == 10
    with pytest.raises(OffsiteError, match="needs data"):
        learn(replace(context, data=None), QUICK)
    with pytest.raises(OffsiteError, match="two rows"):
        learn(replace(context, data=context.data[:1]), QUICK)  # type: ignore[index]


@pytest.mark.parametrize("family", FAMILIES)
def test_harmonizers_taught_by_hidden_states_come_nearer_to_them(family: str) -> None:
    context = world(family)
    training = replace(QUICK, steps=30, lm_weight=0.0, kd_weight=1.0)
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    taught, start = learn(context, training), learn(context, replace(training, lr=1e-12))
    assert all(torch.equal(before[k], v) for k, v in context.model.state_dict().items())

    (batch,) = context.batches(1, 4, seed=9)
    kept = [position != 1 for position in range(len(get_blocks(context.model)))]

    def error(found: Learned) -> tuple[float, float]:
        shell = layer_replace.Shell(context.model, found.harmonizers)
        with torch.no_grad():
            with record_calls(shell.configure(kept), [1]) as calls:
                forward(shell.model, batch)
            target = observe(context.model, batch, [1])
            value = layer_replace.state_error(calls, target).item()
            difference = (calls[1].output - target[1].output).double()
            slow = difference.pow(2).mean() / target[1].output.double().pow(2).mean()
        return value, slow.item()

    (new, slow_new), (old, slow_old) = error(taught), error(start)
    assert new == pytest.approx(slow_new, rel=1e-4) and old == pytest.approx(slow_old, rel=1e-4)
    assert new < old


def test_the_adapter_by_importance_is_named_by_its_count(tmp_path: Path) -> None:
    context = world("llama")
    found = learn(context, QUICK)
    found.save(tmp_path / "learned")
    best = sorted(range(len(found.scores)), key=lambda p: -found.scores[p])[:2]
    model: Any = context.model
    model.save_pretrained(tmp_path / "model")
    full, folder = Checkpoint(str(tmp_path / "model")), str(tmp_path / "learned")
    rule = resolve_adapter(parse_adapter("learned:2"), folder, full)
    assert str(rule) == ",".join(map(str, sorted(best)))
    adapter, _ = scaleot("learned", found.scores, 2, 0.5, 0.0)
    assert rule == Positions(adapter)
    assert resolve_adapter(ends(1, 2), None, full) == ends(1, 2)
    with pytest.raises(OffsiteError, match="--learned with the folder"):
        resolve_adapter(learned(2), None, full)
    with pytest.raises(OffsiteError, match="is impossible"):
        resolve_adapter(learned(99), folder, full)
    language_model("llama", seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(OffsiteError, match="was learned on another model"):
        resolve_adapter(learned(2), folder, Checkpoint(str(tmp_path / "other")))
