"""What tuning, plugging and serving refuse before they cost anything, and what they take right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, GPTJConfig, PreTrainedConfig

from offsite.cli.options import whole_seeds
from offsite.compress.drop import Drop
from offsite.deltas import METHODS, method_json, method_text, parse_method
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.deltas.targets import linear_names
from offsite.errors import OffsiteError
from offsite.exchange.delta_contents import check_labels
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import plug
from offsite.training.devices import accelerate_on
from offsite.training.options import TrainOptions
from offsite.training.train import _own_rate
from offsite.tuner.tuning import run_tune, tune
from tests.support.methods import ADAPTER, METHOD_CASES, disturb, small_model
from tests.support.models import inputs_for, output_of

OPTIONS = TrainOptions(steps=4, batch_size=2, save_every=2)
ROWS = [{"input_ids": torch.arange(1, 9), "labels": torch.arange(1, 9)}] * 16


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Offer, Record]:
    model = small_model("llama")
    offer, record = make_offer(model, adapter=ends(2, 1), recipe=[Drop(keep=1)], processor=None)
    return model, offer, record


def test_gates_are_pressed_alike_however_a_batch_is_divided() -> None:
    sizes = []
    for count in (1, 4):
        runner = METHOD_CASES["diff_pruning"].attach(small_model("llama"), ADAPTER).model.train()
        disturb(runner, 0.02)
        for _ in range(count):
            torch.manual_seed(0)
            (runner(input_ids=torch.arange(1, 9)[None]).logits.pow(2).mean() / count).backward()
        gates = [p.grad for name, p in runner.named_parameters() if name.endswith(".gate")]
        sizes.append(torch.cat([g.flatten() for g in gates if g is not None]))
    torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("config", [FalconConfig, GPTJConfig])
def test_a_prefix_needs_attention_that_would_read_it(config: type[PreTrainedConfig]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
    model = AutoModelForCausalLM.from_config(config(**sizes, rotary_dim=4))
    for gated in (True, False):
        with pytest.raises(OffsiteError, match="use lora or bottleneck"):
            METHODS["prefix"](gated=gated).attach(model, (0, 2))


def test_parameters_with_a_rate_of_their_own_decay_as_before() -> None:
    class Holder:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.create_optimizer = lambda: optimizer

    weight, bias = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [weight], "weight_decay": 0.3}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    _own_rate(Holder(optimizer), [weight, bias], 0.5)
    found = {id(g["params"][0]): g for g in optimizer.param_groups if g["params"]}
    assert [found[id(p)]["weight_decay"] for p in (weight, bias)] == [0.3, 0.0]
    assert [found[id(p)]["lr"] for p in (weight, bias)] == [0.5, 0.5]


def test_the_chosen_device_is_chosen_for_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    with accelerate_on(torch.device("cpu", 0)):
        assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu:0"
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


@pytest.mark.parametrize(
    "change",
    [{"accumulate": 0}, {"warmup": 5.0}, {"schedule": "zigzag"}, {"epochs": float("nan")},
     {"save_every": 0}, {"eval_every": -1}],
)  # fmt: skip
def test_options_that_cannot_train_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OffsiteError):
        replace(OPTIONS, **change)


def test_patience_works_without_a_folder(parts: tuple[Any, Offer, Record]) -> None:
    options = replace(OPTIONS, patience=1, eval_every=1)
    found = run_tune(parts[1], ROWS, LoRA(rank=2), options=options, eval_data=ROWS[:2])
    assert 1 <= found.history.steps <= 4


def test_what_the_owner_would_refuse_is_refused_before_training(
    parts: tuple[Any, Offer, Record],
) -> None:
    for method, message in (
        (METHODS["prefix"](length=20_000), "lower rank, size or length"),
        (LoRA(alpha=1e30), "more than its tensors can hold"),
    ):
        with pytest.raises(OffsiteError, match=message):
            tune(parts[1], ROWS, method, options=OPTIONS)


def test_a_delta_that_asks_for_much_memory_fails_without_taking_it(
    parts: tuple[Any, Offer, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, offer, record = parts
    delta = tune(offer, ROWS, LoRA(rank=2), options=OPTIONS)
    hostile = delta.manifest.model_copy(update={"method": {"kind": "lora", "rank": 500_000}})
    delta.manifest, seen = hostile, []
    attach = LoRA.attach

    def spy(self: Any, model: Any, blocks: Any) -> Any:
        seen.append(next(model.parameters()).device.type)
        return attach(self, model, blocks)

    monkeypatch.setattr(LoRA, "attach", spy)
    with pytest.raises(OffsiteError, match="shape"):
        plug(model, delta, record)
    assert seen == ["meta"]


def test_no_method_takes_numbers_that_are_none() -> None:
    for text in ("lora:alpha=inf", "lora:alpha=nan", "fourier:scaling=-inf", "vera:seed=-1"):
        with pytest.raises(OffsiteError, match=r"finite|seed"):
            parse_method(method_json(text))
    for text in (
        "lora:rank=99999999999999999999999",
        "bottleneck:size=100000000",
        "lora:alpha=1e9",
    ):
        with pytest.raises(OffsiteError, match="take at most 1048576"):
            parse_method(method_json(text))
    with pytest.raises(OffsiteError, match=r"^LoRA needs a rank of at least 1, not -1\.$"):
        parse_method(method_json("lora:rank=-1"))


def test_an_option_may_list_names_and_comes_once() -> None:
    written = method_json("lora:targets=q_proj,v_proj,rank=4+bitfit")
    assert written["methods"][0] == {"kind": "lora", "targets": "q_proj,v_proj", "rank": "4"}
    assert method_json(method_text(written)) == written
    for text in ("lora:rank=4,rank=8", "lora:kind=full"):
        with pytest.raises(OffsiteError, match="given twice"):
            method_json(text)


def test_every_name_among_targets_must_stand_for_something() -> None:
    model = small_model("llama")
    both = linear_names(model, ADAPTER, "attention,up_proj")
    assert both == [n for n in linear_names(model, ADAPTER, "all") if "attn" in n or "up_" in n]
    with pytest.raises(OffsiteError, match="targets=q_proj,nothing"):
        linear_names(model, ADAPTER, "q_proj,nothing")


def test_another_run_is_not_resumed(parts: tuple[Any, Offer, Record], tmp_path: Path) -> None:
    run_tune(parts[1], ROWS, LoRA(rank=2), options=OPTIONS, work=tmp_path / "work")
    again: dict[str, Any] = {"work": tmp_path / "work", "resume": True}
    for method, options, rows, what in (
        (LoRA(rank=4), OPTIONS, ROWS, "method.rank"),
        (
            LoRA(rank=2),
            replace(OPTIONS, lr=0.5, seed=3),
            ROWS,
            "options.lr and another options.seed",
        ),
        (LoRA(rank=2), OPTIONS, ROWS[:8], "data"),
    ):
        with pytest.raises(OffsiteError, match=f"started with another {what}"):
            run_tune(parts[1], rows, method, options=options, **again)
    run_tune(parts[1], ROWS, LoRA(rank=2), options=OPTIONS, **again)


def test_a_prompt_leaves_the_logits_that_were_asked_for() -> None:
    model = small_model("llama")
    runner = METHOD_CASES["prompt"].attach(model, ADAPTER).model.eval()
    batch = inputs_for(model)
    whole = output_of(runner, batch)
    for keep in (1, 3, 4, whole.shape[1]):
        few = runner(**batch, logits_to_keep=keep).logits
        torch.testing.assert_close(few, whole[:, -keep:])


@pytest.mark.parametrize("labels", [("fine", "x" * 201), ("fine", "no\u00a0break"), ["a"] * 65_537])
def test_names_of_classes_are_judged_without_being_shown(labels: Any) -> None:
    with pytest.raises(OffsiteError, match="class") as caught:
        check_labels(labels)
    assert "fine" not in str(caught.value) and "break" not in str(caught.value)


def test_trackers_that_are_not_there_are_named(parts: tuple[Any, Offer, Record]) -> None:
    with pytest.raises(OffsiteError, match="no tracker 'abacus'"):
        tune(parts[1], ROWS, LoRA(rank=2), options=replace(OPTIONS, report_to=("abacus",)))


def test_seeds_are_whole_numbers() -> None:
    assert whole_seeds("0,2,1") == (0, 2, 1)
    for text in ("-1", "0.5", "nan", "inf", "x", ""):
        with pytest.raises(OffsiteError, match="list of seeds"):
            whole_seeds(text)


def test_a_peft_configuration_names_no_folder() -> None:
    model = small_model("llama")
    model.name_or_path = "/home/secret/model"
    method = LoRA(rank=2)
    text = method.attach(model, ADAPTER).peft_config()
    assert text is not None and "secret" not in text
