"""What every tuning method promises, on every family."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.codec import to_json
from offsite.deltas import METHODS, parse_method
from offsite.errors import OffsiteError
from offsite.exchange.contract import check_entries
from offsite.model.blocks import block_of, block_path, get_blocks, rename_blocks
from offsite.model.split import Split, join, whole_middle
from offsite.model.tensors import describe, load_tensors, save_tensors
from tests.support.methods import (
    ADAPTER,
    IDS,
    METHOD_CASES,
    NOT_AT_ZERO,
    PAIRS,
    REFUSED,
    disturb,
    small_model,
)
from tests.support.models import inputs_for, language_model, output_of

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


def clones(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "family"), PAIRS, ids=IDS)
def test_untrained_changes_nothing(name: str, family: str) -> None:
    method, model = METHOD_CASES[name], small_model(family)
    batch = inputs_for(model)
    before = output_of(model, batch)
    after = output_of(method.attach(model, ADAPTER).model.eval(), batch)
    if name in NOT_AT_ZERO:
        assert after.shape == before.shape and not torch.equal(after, before)
    elif name == "lora-dora":
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize(("name", "family"), PAIRS, ids=IDS)
def test_numbers_move_to_another_model_and_back_from_disk(
    name: str, family: str, tmp_path: Path
) -> None:
    method, model = METHOD_CASES[name], small_model(family)
    batch = inputs_for(model)
    plain = output_of(model, batch)
    attached = method.attach(model, ADAPTER)
    runner = attached.model.eval()
    disturb(runner)
    tensors = {key: value.clone() for key, value in attached.tensors().items()}
    save_tensors(tensors, tmp_path / "delta.safetensors")
    loaded = load_tensors([tmp_path / "delta.safetensors"], describe(tensors))
    for key, value in tensors.items():
        assert torch.equal(loaded[key], value)
    attached.load(tensors)
    there = output_of(runner, batch)
    assert not torch.equal(there, plain), "training must reach the output"
    again = parse_method(to_json(method))
    assert again == method
    other = again.attach(small_model(family), ADAPTER)
    check_entries(describe(loaded), other.expected(describe(loaded)))
    other.load(loaded)
    assert torch.equal(output_of(other.model.eval(), batch), there)
    for key, value in other.tensors().items():
        assert torch.equal(value, tensors[key])


@pytest.mark.parametrize(("name", "family"), PAIRS, ids=IDS)
def test_only_adapter_blocks_change(name: str, family: str) -> None:
    method, model = METHOD_CASES[name], small_model(family)
    before, path = clones(model), block_path(model)
    attached = method.attach(model, ADAPTER)
    for parameter, value in attached.model.named_parameters():
        if value.requires_grad:
            assert block_of(parameter, path) in (None, *ADAPTER)
    for key in attached.tensors():
        assert block_of(key, path) in (None, *ADAPTER)
    disturb(attached.model)
    attached.load(attached.tensors())
    parts, plain = getattr(method, "methods", (method,)), attached.detach()
    after = dict(plain.state_dict())
    assert after.keys() == before.keys() and type(plain) is type(small_model(family))
    for key, value in before.items():
        if block_of(key, path) not in ADAPTER or not any(part.merges for part in parts):
            assert torch.equal(after[key], value), key


@pytest.mark.parametrize(
    ("name", "family", "dtype"),
    [(name, family, torch.float32) for name, family in PAIRS]
    + [(name, family, torch.bfloat16) for name, family in PAIRS if family in ("gpt2", "llama")],
)
def test_merged_equals_attached(name: str, family: str, dtype: torch.dtype) -> None:
    """Merged in float32 and rounded, as ``plug`` does, against the modules at work."""
    method, model = METHOD_CASES[name], small_model(family, dtype)
    if not method.merges:
        with pytest.raises(OffsiteError, match="cannot be folded"):
            method.attach(model, ADAPTER).merge()
        return
    batch = inputs_for(model)
    for index in ADAPTER:
        get_blocks(model)[index].float()
    attached = method.attach(model, ADAPTER)
    disturb(attached.model.eval(), 0.03)
    attached.load(attached.tensors())
    at_work = output_of(attached.model.to(dtype), batch).float()
    attached = method.attach(small_model(family).to(dtype).float(), ADAPTER)
    disturb(attached.model.eval(), 0.03)
    attached.load(attached.tensors())
    merged = output_of(attached.merge().to(dtype), batch).float()
    torch.testing.assert_close(merged, at_work, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "family"), PAIRS, ids=IDS)
def test_positions_in_another_model_do_not_matter(name: str, family: str) -> None:
    """The same numbers at renamed positions make the same blocks."""
    method, model = METHOD_CASES[name], small_model(family)
    split = Split(ADAPTER, 6)
    middle = whole_middle(model, split)
    short = type(middle)(middle.blocks[:1], middle.positions[:1])
    emulator, places = join(small_model(family), split, short)
    small = method.attach(emulator, places)
    disturb(small.model.eval())
    tensors = {key: value.clone() for key, value in small.tensors().items()}
    mapping = dict(zip(places, ADAPTER, strict=True))
    large = method.attach(small_model(family), ADAPTER)
    large.model.eval()
    large.load(rename_blocks(tensors, block_path(model), mapping))
    small.load(tensors)
    runner, full = ((a.merge() if method.merges else a.model) for a in (small, large))
    for inner, outer in mapping.items():
        mine = get_blocks(runner)[inner].state_dict()
        for key, value in get_blocks(full)[outer].state_dict().items():
            assert torch.equal(mine[key], value), key


@pytest.mark.parametrize(("name", "family"), PAIRS, ids=IDS)
def test_gradients_reach_every_number(name: str, family: str) -> None:
    """Under gradient checkpointing, too, and with the same values."""
    method, model = METHOD_CASES[name], small_model(family)
    runner: Any = method.attach(model, ADAPTER).model.train()
    disturb(runner, 0.02)
    rows = torch.randint(1, 300, (8, 16), generator=torch.Generator().manual_seed(0))
    trained = {n: p for n, p in runner.named_parameters() if p.requires_grad}
    reached = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in trained.items()}
    for attempt in range(12):  # hard-concrete gates open at random
        if attempt == 1:
            runner.gradient_checkpointing_enable()
        torch.manual_seed(0 if attempt < 2 else attempt)
        model.zero_grad()
        output = runner(input_ids=rows, use_cache=False).logits
        (output.float() ** 2).mean().backward()
        if attempt == 0:
            first = {n: p.grad.clone() for n, p in trained.items()}
        if attempt == 1:
            for key, value in first.items():
                torch.testing.assert_close(trained[key].grad, value, rtol=1e-3, atol=1e-6)
        for key, value in trained.items():
            reached[key] |= value.grad != 0
        if all(bool(mask.all()) for mask in reached.values()):
            return
    for key, mask in reached.items():
        dead = 1 - mask.float().mean().item()
        assert dead < allowed_dead(key), f"{dead:.0%} of {key} get no gradient"


def allowed_dead(key: str) -> float:
    """How many parameters may have no gradient.

    Key biases shift all scores of a softmax alike, a norm forgets a common shift (one frequency in
    twenty), and a unit behind a relu may sleep.
    """
    if key.endswith("bias"):
        return 1.01
    return 0.5 if ".fc" in key else 0.06


@pytest.mark.parametrize("name", METHOD_CASES)
def test_nothing_holds_a_tuned_model_in_memory(name: str) -> None:
    attached = METHOD_CASES[name].attach(small_model("llama"), ADAPTER)
    runner = attached.model.train()
    runner(input_ids=torch.ones(2, 8, dtype=torch.long)).logits.sum().backward()
    held = [weakref.ref(parameter) for parameter in runner.parameters()]
    del runner, attached
    gc.collect()
    assert not any(parameter() is not None for parameter in held)


@pytest.mark.parametrize(("name", "family"), REFUSED)
def test_what_cannot_work_says_what_can(name: str, family: str) -> None:
    with pytest.raises(OffsiteError, match="use lora"):
        METHOD_CASES[name].attach(small_model(family), ADAPTER)


def test_bitfit_without_biases_names_lora() -> None:
    model = language_model("llama", attention_bias=False)
    with pytest.raises(OffsiteError, match="use lora"):
        METHODS["bitfit"]().attach(model, ADAPTER)


def test_every_method_says_what_it_is() -> None:
    methods: dict[str, Any] = METHODS
    for kind, cls in methods.items():
        assert cls.kind == kind and cls.when and 0 < cls.lr < 1 and cls.__doc__
        assert "The delta holds" in cls.__doc__
        assert parse_method({"kind": kind}) == cls()


def test_unknown_methods_and_options_are_refused() -> None:
    for bad in ({"kind": "loar"}, {"kind": "lora", "ranks": 2}, {"kind": "lora", "rank": 0}, [1]):
        with pytest.raises(OffsiteError):
            parse_method(bad)
