"""Several methods tuned together: the sum of its parts, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.codec import to_json
from offsite.compress.drop import Drop
from offsite.compress.recipe import Recipe
from offsite.deltas import METHODS, Combined, method_json, method_text, parse_method
from offsite.deltas.addition.bottleneck import Bottleneck
from offsite.deltas.addition.prefix import Prefix
from offsite.deltas.addition.prompt import Prompt
from offsite.deltas.reparameterisation.lora import LoRA
from offsite.deltas.specification.bitfit import BitFit
from offsite.deltas.specification.full import Full
from offsite.deltas.specification.masking import Masking
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.lab.lab import Lab
from offsite.lab.plan import Plan
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugged import Plugged
from offsite.owner.plugging import keep_apart
from offsite.owner.serving import Served
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import tune
from tests.support import Run
from tests.support.methods import METHOD_CASES, small_model
from tests.support.models import inputs_for, output_of

TASK = CausalText(max_length=32)
SHORT = TrainOptions(steps=3, batch_size=2, lr=1e-2)
BOTH = Combined((LoRA(rank=2), Bottleneck(size=4)))


def offered(tokenizer: Any) -> Any:
    return make_offer(small_model("llama"), adapter=ends(2, 1), processor=tokenizer)


def test_the_parts_of_a_block_together_are_the_block(tokenizer: Any, text_file: Path) -> None:
    """Attention, feed-forward and norms are all there is: bit for bit what ``full`` gives."""
    offer, _ = offered(tokenizer)
    parts = Combined((Full(part="norm"), Full(part="mlp"), Full(part="attention")))
    together = tune(offer, text_file, parts, options=SHORT, task=TASK).values()
    whole = tune(offer, text_file, Full(), options=SHORT, task=TASK).values()
    assert together.keys() == whole.keys() and len(whole) > 20
    for name, value in whole.items():
        assert torch.equal(together[name], value), name


@pytest.mark.parametrize("lr", [None, 4e-4])
def test_each_method_learns_at_its_own_rate(
    lr: float | None, tokenizer: Any, text_file: Path
) -> None:
    """The first step of AdamW is as long as its rate, whatever the gradient."""
    offer, _ = offered(tokenizer)
    options = TrainOptions(steps=1, batch_size=2, lr=lr, warmup=0.0, schedule="constant")
    method = Combined((LoRA(rank=2), BitFit(), Full(part="norm")))
    delta = tune(offer, text_file, method, options=options, task=TASK).values()
    own = dict(offer.model.named_parameters())
    moved = {"lora": 0.0, "bitfit": 0.0, "full": 0.0}
    for name, value in delta.items():
        part = "lora" if "lora_" in name else "bitfit" if name.endswith("bias") else "full"
        if "lora_A" not in name:  # drawn at random, and without a gradient while B is zero
            start = own[name] if name in own else torch.zeros_like(value)
            moved[part] = max(moved[part], (value - start).abs().max().item())
    methods: dict[str, Any] = METHODS
    for part, step in moved.items():
        assert step == pytest.approx(lr or methods[part].lr, rel=2e-2), part


def test_a_bottleneck_stands_behind_the_new_weights() -> None:
    model = small_model("llama")
    runner: Any = BOTH.attach(model, (0,)).model.eval()
    layer = runner.model.layers[0].mlp.down_proj
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "lora_B" in name or ".up." in name:
                parameter.normal_()
    x = torch.randn(3, layer.in_features)
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    new = layer.base_layer(x) + 16 / 2 * x @ lora_a.T @ lora_b.T
    down, up = layer.bottleneck.down, layer.bottleneck.up
    slow = new + up(torch.nn.functional.gelu(down(new)))
    torch.testing.assert_close(layer(x), slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((LoRA(),), "two methods or more"),
        ((LoRA(), Masking()), "both need the model's weights"),
        ((Prefix(), BitFit(), Prefix(length=2)), "both need the model's prefix"),
        ((Combined((LoRA(), BitFit())), Prompt()), "cannot be part of a combination"),
        ((METHODS["intrinsic_prompt"](), LoRA()), "cannot be part of a combination"),
    ],
)
def test_what_cannot_stand_together_is_refused(methods: Any, message: str) -> None:
    with pytest.raises(OffsiteError, match=message):
        Combined(methods)


def test_two_methods_cannot_tune_the_same_numbers() -> None:
    with pytest.raises(OffsiteError, match="'full' and 'bitfit' tune the same parameters"):
        Combined((Full(), BitFit())).attach(small_model("llama"), (0, 1))


def test_written_and_read() -> None:
    words = "lora:rank=2+bottleneck:size=4,style=pfeiffer+full:part=norm"
    method = parse_method(method_json(words))
    assert method == Combined(
        (LoRA(rank=2), Bottleneck(size=4, style="pfeiffer"), Full(part="norm"))
    )
    assert parse_method(to_json(method)) == method
    assert method_text(to_json(method)) == words
    assert method_json("lora:alpha=1e+3") == {"kind": "lora", "alpha": "1e+3"}
    inner = {"kind": "combined", "methods": [{"kind": "lora"}, {"kind": "bitfit"}]}
    for bad, message in (
        ({"kind": "combined"}, "a list of 'methods'"),
        ({"kind": "combined", "methods": "lora+bitfit"}, "a list of 'methods'"),
        ({"kind": "combined", "methods": [], "rank": 2}, "and nothing else"),
        ({"kind": "combined", "methods": [inner, {"kind": "prompt"}]}, "'combined' is not a delta"),
        ({"kind": "combined", "methods": [{"kind": "lora", "ranks": 1}, 3]}, "no option 'ranks'"),
    ):
        with pytest.raises(OffsiteError, match=message):
            parse_method(bad)
    odd: dict[str, Any]
    for odd in ({"kind": "combined"}, {"kind": "combined", "methods": ["lora"]}, {"kind": "x"}):
        assert method_text(odd).startswith(str(odd["kind"])), "what came from outside is shown"
    for words in ("lora+", "+", "lora+bitfut"):
        with pytest.raises(OffsiteError, match="is not a delta method"):
            parse_method(method_json(words))
    with pytest.raises(OffsiteError, match="which method of 'lora\\+bitfit'"):
        method_json("lora+bitfit", ["rank=2"])


@pytest.fixture(scope="module")
def rack(tmp_path_factory: Any, tokenizer: Any) -> dict[str, Plugged]:
    """A combination that is partly attached, one that merges, and single methods."""
    text = tmp_path_factory.mktemp("rack") / "train.txt"
    text.write_text("the cat sat on the mat and sang of it. " * 40)
    offer, record = offered(tokenizer)
    return {
        name: keep_apart(
            small_model("llama"),
            tune(offer, text, METHOD_CASES[name], options=SHORT, task=TASK),
            record,
        )
        for name in ("bottleneck+lora+prefix", "lora+bitfit", "bottleneck", "full", "prompt")
    }


def test_served_it_folds_what_merges_and_attaches_the_rest(rack: dict[str, Plugged]) -> None:
    served, batch = Served(small_model("llama")), inputs_for(small_model("llama"))
    plain, mixed = output_of(served.model, batch), "bottleneck+lora+prefix"
    for name, delta in rack.items():
        served.add(name, delta)
    alone = output_of(served.switch(mixed), batch)
    kinds = {type(module).__name__ for module in served.model.modules()}
    assert {"DownUp", "KeyValues"} <= kinds and "LoraLayer" not in kinds
    name = "model.layers.5.mlp.up_proj.weight"
    folded, base = (
        served.model.get_parameter(name).clone(),
        small_model("llama").get_parameter(name),
    )
    assert not torch.equal(folded, base)
    stacked = served.switch(mixed, "full", "prompt").get_parameter(name)
    full = rack["full"].tensors[name]
    torch.testing.assert_close(stacked, folded + full - base)
    for bad, message in (
        ({mixed: 1.0, "bottleneck": 1.0}, "both need the model's bottleneck"),
        ({mixed: 0.5}, "must be 1, not 0.5"),
    ):
        with pytest.raises(OffsiteError, match=message):
            served.switch(**bad)
    half = served.switch(**{"lora+bitfit": 0.5}).get_parameter(name)
    whole = served.switch("lora+bitfit").get_parameter(name).clone()
    assert not torch.equal(half.clone(), base) and not torch.equal(whole, base)
    assert torch.equal(output_of(served.switch(mixed), batch), alone)
    served.remove(mixed)
    assert torch.equal(output_of(served.model, batch), plain)


def test_tensors_that_do_not_fit_are_refused(rack: dict[str, Plugged]) -> None:
    good, served = rack["bottleneck+lora+prefix"], Served(small_model("llama"))
    for part in ("lora_A", "bottleneck.down.weight", "prefix.gate"):
        first = next(name for name in good.tensors if part in name)
        rest = {name: value for name, value in good.tensors.items() if name != first}
        for tensors in (rest, {**rest, first: torch.zeros(3)}):
            with pytest.raises(OffsiteError, match=r"lacks 1|shape"):
                served.add("bad", replace(good, tensors=tensors))
    assert not served.deltas


def test_through_the_commands(run: Run, model_folder: Any, text_file: Path, tmp_path: Path) -> None:
    model = model_folder("llama")
    for name, fits in (
        ("lora:rank=2+bitfit", True),
        ("bottleneck:size=4+lora", False),
    ):
        offer, delta = tmp_path / f"offer-{fits}", tmp_path / f"delta-{fits}"
        assert run("offer", model, "--adapter", "ends:2,1", "--keep", 1, "--out", offer)[0] == 0
        words = ["tune", offer, "--data", text_file, "--steps", 2, "--max-length", 32]
        assert run(*words, "--delta", name, "--out", delta)[0] == 0
        assert Delta.load(delta).manifest.method["kind"] == "combined"
        code, out, _ = run("inspect", delta, "--base", offer)
        assert code == 0 and f"{name} delta" in out
        plug = ["plug", model, delta, "--record", f"{offer}.record.json", "--again", "--out"]
        code, _, err = run(*plug, tmp_path / f"tuned-{fits}")
        assert (code == 0) == fits and (fits or "--as-adapter" in err)
        code, _, err = run(*plug, tmp_path / f"apart-{fits}", "--as-adapter")
        assert code == 0, err
        assert run("inspect", tmp_path / f"apart-{fits}", "--base", model)[0] == 0
    code, _, err = run(*words, "--delta", "lora+masking", "--out", tmp_path / "no")
    assert code != 0 and "both need the model's weights" in err
    code, out, _ = run("deltas")
    assert code == 0 and "lora:rank=8+bitfit" in out


def test_the_lab_keeps_every_delta_apart(
    model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    """Two of one kind, and a combination by its own name, through folders and back."""
    text_file.write_text(text_file.read_text()[:400])
    words = {"norm": "full:part=norm", "mlp": "full:part=mlp", "LoRA + biases": "lora+bitfit"}
    plan = Plan(
        model=str(model_folder("llama")),
        data=str(text_file),
        eval_data=str(text_file),
        max_length=32,
        recipes={"uniform": Recipe((Drop(keep=1),))},
        deltas={name: method_json(text) for name, text in words.items()},
        options=TrainOptions(steps=1, batch_size=2),
        baseline=False,
    )
    exchange = tmp_path / "exchange"
    rows = list(Lab(plan, tmp_path / "lab", "cpu", exchange=exchange).run())
    assert [row.delta for row in rows] == list(words)
    assert {path.name for path in exchange.glob("delta-*")} == {
        f"delta-uniform-{name}-0" for name in ("norm", "mlp", "lora-biases")
    }
