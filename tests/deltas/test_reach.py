"""A low-rank delta over all blocks of the emulator, plugged onto the blocks they stand for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from offsite.codec import to_json
from offsite.compress.crash import Share
from offsite.compress.drop import Drop
from offsite.compress.gradot.step import GradOT
from offsite.compress.narrow import Narrow
from offsite.compress.quantise import Quantise
from offsite.compress.rank import Rank
from offsite.compress.scaleot.step import LayerReplace
from offsite.deltas import BitFit, LoRA
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta, new_delta
from offsite.exchange.offer import Offer
from offsite.exchange.record import Record
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import keep_apart, merge_delta, plug
from offsite.owner.serving import load_plugged
from offsite.tasks.data import rows_of
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.training.train import train
from offsite.tuner.importing import import_peft
from offsite.tuner.tuning import run_tune
from tests.support.models import inputs_for, language_model, output_of

TASK = CausalText(max_length=32)
SHORT = TrainOptions(steps=3, batch_size=2, lr=1e-2)


def trip(
    model: Any, recipe: list[Any], tokenizer: Any, text: Path, folder: Path, reach: Any = "all"
) -> tuple[Any, Delta, Record]:
    """Offer and tune through folders; the tuned emulator, the delta and the record."""
    offer, record = make_offer(
        model, adapter=ends(1, 1), recipe=recipe, data=str(text), task=TASK, processor=tokenizer,
        reach="all",
    )  # fmt: skip
    offer.save(folder / "offer")
    record.save(folder / "record.json")
    loaded = Offer.load(folder / "offer")
    tuned = run_tune(loaded, text, LoRA(rank=2), options=SHORT, task=TASK, reach=reach)
    tuned.delta.save(folder / "delta")
    return tuned.model, Delta.load(folder / "delta"), Record.load(folder / "record.json")


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_with_nothing_dropped_it_is_tuning_the_full_model(
    family: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model = language_model(family)
    _, delta, record = trip(model, [], tokenizer, text_file, tmp_path)
    plugged = merge_delta(model, delta, record)
    own, method = copy.deepcopy(model), LoRA(rank=2)
    rows = rows_of(TASK, text_file, tokenizer, own, train=True)
    torch.manual_seed(SHORT.seed)
    attached = method.attach(own, range(6))
    train(
        attached.model,
        rows,
        loss=TASK.loss,
        collate=TASK.collate,
        options=SHORT,
        device=torch.device("cpu"),
    )
    expected = dict(attached.merge().named_parameters())
    before = dict(model.named_parameters())
    changed = 0
    for name, value in plugged.named_parameters():
        assert torch.equal(value, expected[name]), name
        changed += not torch.equal(value, before[name])
    assert changed >= 6 * 4


def test_each_block_goes_to_the_one_it_stands_for(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    """Shared blocks travel once, but each place has a change of its own."""
    model = language_model("llama")
    tuned, delta, record = trip(model, [Drop(keep=2), Share()], tokenizer, text_file, tmp_path)
    assert record.offers[0].middle == (1, 2, 3, 4)
    plugged = dict(merge_delta(model, delta, record).named_parameters())
    factors = dict(tuned.named_parameters())
    for index in range(6):
        name = f"model.layers.{index}.mlp.up_proj"
        a = factors[f"base_model.model.{name}.lora_A.default.weight"]
        b = factors[f"base_model.model.{name}.lora_B.default.weight"]
        before = model.get_parameter(f"{name}.weight")
        assert torch.allclose(plugged[f"{name}.weight"], before + 8 * b @ a, atol=1e-6)
        assert not torch.equal(plugged[f"{name}.weight"], before)


def test_dropped_blocks_stay_as_they_are(tokenizer: Any, text_file: Path, tmp_path: Path) -> None:
    model = language_model("llama")
    _, delta, record = trip(model, [Drop(keep=2)], tokenizer, text_file, tmp_path)
    assert record.offers[0].middle == (1, 4)
    before, after = model.state_dict(), merge_delta(model, delta, record).state_dict()
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0", "1", "4", "5"}
    folder = tmp_path / "plugged"
    keep_apart(model, delta, record).save(folder)
    served = load_plugged(copy.deepcopy(model), folder)
    assert torch.equal(
        output_of(served, inputs_for(model)),
        output_of(merge_delta(model, delta, record), inputs_for(model)),
    )


@pytest.mark.parametrize(
    ("family", "by"), [("llama", "gradot"), ("gpt2", "gradot"), ("qwen2", "narrow")]
)
def test_narrow_layers_are_scattered_back_into_zeros(
    family: str, by: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    groups: dict[str, Any] = {"num_key_value_heads": 2} if by == "narrow" else {}
    model = language_model(family, **groups)
    step: Any = GradOT(attention=1.0, feed_forward=0.5, batches=2)
    recipe = [Drop(keep=2), Narrow(feed_forward=0.5, groups=0.5) if by == "narrow" else step]
    _, delta, record = trip(model, recipe, tokenizer, text_file, tmp_path)
    kept = record.offers[0].kept
    assert {name.split(".")[0] for name in kept} == {"1", "4"}
    before, after = model.state_dict(), merge_delta(model, delta, record).state_dict()
    for name, left in kept.items():
        full = next(n for n in before if n.endswith(f".{name}.weight"))
        change = after[full] - before[full]
        change = change.T if family == "gpt2" else change
        if left.rows is not None:
            rows = torch.ones(len(change), dtype=torch.bool)
            rows[list(left.rows)] = False
            assert not change[rows].any() and change[list(left.rows)].any()
        if left.columns is not None:
            columns = torch.ones(change.shape[1], dtype=torch.bool)
            columns[list(left.columns)] = False
            assert not change[:, columns].any() and change[:, list(left.columns)].any()


@pytest.mark.parametrize("step", [Rank(beta=0.5), Quantise(bits=8, group=8)])
def test_low_rank_and_quantised_layers_are_tuned_as_one(
    step: Any, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    model = language_model("llama")
    _, delta, record = trip(model, [Drop(keep=2), step], tokenizer, text_file, tmp_path)
    before, after = model.state_dict(), merge_delta(model, delta, record).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1, 4, 5)} <= changed


def test_what_cannot_reach_is_refused(tokenizer: Any, text_file: Path, tmp_path: Path) -> None:
    model = language_model("llama")
    offer, record = make_offer(model, adapter=ends(1, 1), processor=tokenizer)
    with pytest.raises(OffsiteError, match="changes to its adapter blocks only"):
        run_tune(offer, text_file, LoRA(rank=2), options=SHORT, task=TASK, reach="all")
    wide, private = make_offer(model, adapter=ends(1, 1), processor=tokenizer, reach="all")
    for method in (BitFit(), LoRA(rank=2, dora=True)):
        with pytest.raises(OffsiteError, match="cannot tune all blocks"):
            run_tune(wide, text_file, method, options=SHORT, task=TASK, reach="all")
    tuned = run_tune(wide, text_file, LoRA(rank=2), options=SHORT, task=TASK, reach="all")
    tensors, made_by = tuned.delta.values(), tuned.delta.manifest.method
    forged = new_delta(offer.manifest, tensors, made_by, reach="all")
    with pytest.raises(OffsiteError, match="lets only the adapter blocks change"):
        plug(model, forged, record)
    forged = new_delta(wide.manifest, tensors, to_json(LoRA(rank=2, dora=True)), reach="all")
    with pytest.raises(OffsiteError, match="cannot tune all blocks"):
        plug(model, forged, private)
    forged = new_delta(wide.manifest, tensors, made_by)  # all blocks, but declared for the adapter
    with pytest.raises(OffsiteError, match="not one of the adapter blocks"):
        plug(model, forged, private)
    with pytest.raises(OffsiteError, match="harmonizer"):
        make_offer(
            model, adapter=ends(1, 1), recipe=[LayerReplace(alpha=0.5, steps=1, batch_size=2)],
            data=str(text_file), task=TASK, processor=tokenizer, reach="all",
        )  # fmt: skip


def test_commands_reach_all_blocks(
    run: Any, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model, short = model_folder("llama"), ["--steps", 1, "--max-length", 32]
    offer = ["offer", model, "--out", tmp_path / "o", "--adapter", "ends:1,1", "--keep", 2]
    assert run(*offer, "--reach", "every")[2].endswith("use adapter or all.\n")
    assert run(*offer, "--reach", "all")[0] == 0
    tune = ["tune", tmp_path / "o", "--data", text_file, *short, "--delta", "lora:rank=2"]
    status, out, error = run(*tune, "--out", tmp_path / "d", "--reach", "all", "--json")
    assert status == 0, error
    trained = json.loads(out)["trainable"]
    assert json.loads(out)["precision"] == ("bfloat16" if torch.cuda.is_available() else "float32")
    assert run(*tune, "--out", tmp_path / "narrow")[0] == 0
    record = ["--record", tmp_path / "o.record.json"]
    assert run("plug", model, tmp_path / "d", *record, "--out", tmp_path / "t")[0] == 0
    status, _, error = run(
        *["delta", "export", tmp_path / "o", tmp_path / "d", "--out", tmp_path / "x"]
    )
    assert status == 2 and "tunes all blocks" in error
    lab = ["lab", model, "--data", text_file, "--eval-data", text_file, "--adapter", "ends:1,1"]
    lab += ["--keep", 2, "--delta", "lora:rank=2", "--delta", "lora:rank=2,reach=all", *short]
    status, out, error = run(*lab, "--device", "cpu", "--out", tmp_path / "lab", "--json")
    assert status == 0, error
    counts = {row["delta"]: row["trainable"] for row in json.loads(out)["rows"]}
    assert counts["lora:rank=2,reach=all"] == trained == 2 * counts["lora:rank=2"]


def test_an_adapter_trained_elsewhere_may_reach_all_blocks(tokenizer: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = language_model("llama")
    for reach in ("all", "adapter"):
        offer, record = make_offer(
            model, adapter=ends(1, 1), recipe=[Drop(keep=2)], processor=tokenizer, reach=reach
        )
        trained = get_peft_model(
            copy.deepcopy(offer.model), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        )
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        trained.save_pretrained(tmp_path / reach)
        if reach == "adapter":
            with pytest.raises(OffsiteError, match="outside the offer's adapter blocks"):
                import_peft(offer, tmp_path / reach)
            continue
        delta = import_peft(offer, tmp_path / reach)
        after = merge_delta(model, delta, record).state_dict()
        changed = {n.split(".")[2] for n, v in model.state_dict().items() if not after[n].equal(v)}
        assert delta.manifest.reach == "all" and changed == {"0", "1", "4", "5"}
