"""Ways to train faster and in less memory give the same result as the plain way."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from offsite.deltas import BitFit, DiffPruning, Full, LoRA
from offsite.errors import OffsiteError
from offsite.model import replay
from offsite.model.blocks import alias, get_blocks
from offsite.model.replay import forward
from offsite.tasks.text.causal import CausalText
from offsite.training.compiling import compiled, should_compile
from offsite.training.options import TrainOptions
from offsite.training.precision import choose_precision, in_precision, native_precision
from offsite.training.train import train
from offsite.training.tunable import Tunable
from tests.support.models import language_model

CPU = torch.device("cpu")
TASK = CausalText(max_length=16)


def rows(count: int = 24) -> Any:
    ids = torch.randint(5, 300, (count, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


def tuned(loss: Any = TASK.loss, attach: Any = None, **options: Any) -> dict[str, torch.Tensor]:
    """What some steps of LoRA on a tiny LLaMA end with."""
    attach = attach or LoRA(rank=2).attach
    torch.manual_seed(0)
    model = attach(language_model("llama"), [0, 5]).model
    options = {"steps": 4, "batch_size": 8, "lr": 1e-2, **options}
    train(
        model, rows(), loss=loss, collate=TASK.collate, device=CPU, options=TrainOptions(**options)
    )
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class Small:
    """A device that has memory for so many rows, and for more with activation checkpointing."""

    def __init__(self, fits: int, recomputing: int) -> None:
        self.fits, self.recomputing, self.sizes = fits, recomputing, []  # type: ignore[var-annotated]

    def loss(self, model: nn.Module, batch: Mapping[str, Any], items: Any = None) -> torch.Tensor:
        self.sizes.append(size := len(batch["input_ids"]))
        recomputes = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        loss = TASK.loss(model, batch, items)
        if size > (self.recomputing if recomputes else self.fits):
            torch.autograd.backward(loss / 2)  # what an interrupted pass has left must not count
            raise torch.OutOfMemoryError
        return loss


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("fits", "sizes"), [(8, [8]), (3, [8, 4, 2]), (0, [8, 4, 2, 1])])
def test_out_of_memory_halves_what_is_computed_at_once(
    fits: int, sizes: list[int], accumulate: int, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Small(fits, recomputing=1)
    found = tuned(device.loss, accumulate=accumulate)
    for name, value in tuned(accumulate=accumulate).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    assert sorted(set(device.sizes), reverse=True) == sizes
    said = capsys.readouterr().err
    assert said.count("rows at a time") == len(sizes) - 1
    assert ("computed again" in said) == (fits == 0)


def test_a_row_that_does_not_fit_is_said() -> None:
    with pytest.raises(OffsiteError, match="single row does not fit"):
        tuned(Small(0, 0).loss)


def test_compiled_blocks_compute_the_same() -> None:
    model = language_model("llama")
    ids = torch.stack([row["input_ids"] for row in rows(2)])
    runner: Any = LoRA(rank=2).attach(model, [0, 5]).model
    trained = [p for p in runner.parameters() if p.requires_grad]

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(TASK.loss(runner, {"input_ids": ids, "labels": ids}), trained)

    plain = gradients()
    torch._dynamo.reset()  # what earlier tests compiled is no part of this count
    before = counters["stats"]["unique_graphs"]
    with compiled(runner, backend="aot_eager"):
        found = gradients()
    graphs = counters["stats"]["unique_graphs"] - before
    assert 2 <= graphs <= 4  # first, frozen and last of six blocks, and the head's softmax
    assert not any("forward" in vars(block) for block in get_blocks(model))
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_compiling_must_pay() -> None:
    cuda = torch.device("cuda")
    assert should_compile(None, 1000, cuda) and not should_compile(None, 10, cuda)
    assert not should_compile(None, 10**6, CPU) and should_compile(True, 1, CPU)


@pytest.mark.parametrize("method", [LoRA(rank=2), Full(), DiffPruning()])
def test_what_is_frozen_is_held_in_half_and_what_trains_in_float32(method: Any) -> None:
    torch.manual_seed(0)
    model: Any = language_model("llama", tie_word_embeddings=True)
    get_blocks(model)[3] = alias(get_blocks(model)[2])
    runner = method.attach(model, [0, 5]).model
    before = {name: p.data for name, p in runner.named_parameters()}
    with in_precision(runner, torch.bfloat16, CPU):
        for name, parameter in runner.named_parameters():
            exact = parameter.requires_grad or "parametrizations" in name
            assert parameter.dtype == (torch.float32 if exact else torch.bfloat16)
        weights = dict(runner.named_parameters(remove_duplicate=False))
        two, three = (
            next(w for n, w in weights.items() if f".{i}.mlp.up_proj" in n) for i in (2, 3)
        )
        assert two.data_ptr() == three.data_ptr()
    for name, parameter in runner.named_parameters():
        assert parameter.requires_grad or parameter.data_ptr() == before[name].data_ptr()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_norm_of_which_a_part_trains_is_held_in_one_precision(family: str) -> None:
    runner: Any = BitFit().attach(language_model(family), [0, 5]).model
    ids = torch.stack([row["input_ids"] for row in rows(2)])
    with in_precision(runner, torch.bfloat16, CPU), torch.autocast("cpu", torch.bfloat16):
        loss = TASK.loss(runner, {"input_ids": ids, "labels": ids})
        loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()


def test_half_precision_learns_what_float32_learns() -> None:
    """On the frozen weights in bfloat16 too, and without rounding what trains."""
    losses = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = Full().attach(language_model("llama"), [0, 5]).model
        dtype = getattr(torch, precision)
        with in_precision(model, dtype, CPU):
            done = train(
                model, rows(), loss=TASK.loss, collate=TASK.collate, device=CPU,
                options=TrainOptions(steps=20, lr=1e-2, precision=precision),
            )  # fmt: skip
        losses.append(done.loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[1] < 5.68


def test_precision_follows_what_is_given() -> None:
    assert native_precision(CPU) == choose_precision(None, None, CPU) == "float32"
    assert (
        choose_precision(None, torch.bfloat16, CPU)
        == choose_precision("bfloat16", None, CPU)
        == "bfloat16"
    )
    assert choose_precision("bfloat16", torch.float32, CPU) == "bfloat16"
    with pytest.raises(OffsiteError, match="use bfloat16 for both"):
        choose_precision("float32", torch.bfloat16, CPU)


def test_the_trainer_does_not_walk_through_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str] = []
    for name in ("named_modules", "train"):
        original = getattr(nn.Module, name)

        def counted(self: nn.Module, *a: Any, original: Any = original, **k: Any) -> Any:
            if isinstance(self, GradientCheckpointingLayer):
                walks.append("block")
            return original(self, *a, **k)

        monkeypatch.setattr(nn.Module, name, counted)
    counts = []
    for steps in (2, 6):
        model = language_model("llama")
        runner = LoRA(rank=2).attach(model, [0, 5]).model
        walks.clear()
        train(
            runner, rows(48), loss=TASK.loss, collate=TASK.collate, device=CPU,
            options=TrainOptions(steps=steps, lr=1e-2),
        )  # fmt: skip
        counts.append(len(walks))
    assert counts[0] == counts[1]  # none of them belongs to a step


def test_what_trains_keeps_its_names_and_the_mode_reaches_every_module() -> None:
    model = LoRA(rank=2).attach(language_model("llama"), [0, 5]).model.eval()
    tunable = Tunable(model, TASK.loss)
    plain = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, _ in tunable.named_parameters()} == plain
    assert not tunable.eval().model.training and tunable.train().model.training


def test_dropout_acts_only_in_blocks_that_train() -> None:
    model = language_model("gpt2", resid_pdrop=0.5)
    tunable = Tunable(LoRA(rank=2).attach(model, [0, 5]).model, TASK.loss)
    states = torch.randn(2, 8, model.config.n_embd)

    def dropping() -> list[int]:
        found = [(block(states), block(states)) for block in get_blocks(model)]
        return [index for index, (one, two) in enumerate(found) if not torch.equal(one, two)]

    assert dropping() == [0, 5] and model.transformer.drop.training
    tunable.eval()
    assert dropping() == []
    tunable.train()
    assert dropping() == [0, 5]
    tunable.gradient_checkpointing_enable()  # transformers recomputes only what is in training mode
    assert dropping() == list(range(6))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_rows_of_one_example_are_not_searched_for_others(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search waits for the device in every step; rows that say where examples start need it."""
    model, ids = language_model(family), torch.arange(5, 17)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        searched: list[torch.Tensor] = []
        find = replay.search

        def see(position_ids: torch.Tensor) -> torch.Tensor | None:
            searched.append(position_ids)
            found: torch.Tensor | None = find(position_ids)
            return found

        monkeypatch.setattr(replay, "search", see)
        assert torch.equal(forward(model, {"input_ids": ids}).logits, expected)
        assert not searched
        with ThreadPoolExecutor(1) as other, replay.one_example_a_row():
            other.submit(model, input_ids=ids, use_cache=False).result()
        assert searched  # in another thread, at the same time
        searched.clear()
        positions = torch.arange(6).repeat(2)[None]
        packed = forward(model, {"input_ids": ids, "position_ids": positions}).logits
    assert searched and not torch.allclose(packed, expected)
