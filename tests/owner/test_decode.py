"""Decoding by the owner: the teacher, what is learnt from it, and the command."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from offsite.compress.drop import Drop
from offsite.compress.narrow import Narrow
from offsite.deltas import Full, LoRA
from offsite.errors import OffsiteError
from offsite.exchange.delta import Delta
from offsite.exchange.offer import Offer
from offsite.model.split import ends
from offsite.owner.decode import Decode, Decoding
from offsite.owner.mixture import Mixture, with_delta
from offsite.owner.offering import make_offer
from offsite.owner.plugging import merge_delta
from offsite.owner.sampling import sampled_rows
from offsite.tasks.data import rows_of
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import run_tune
from tests.support import Run
from tests.support.models import LANGUAGE, inputs_for, language_model, output_of, plain_divergence

TASK = CausalText(max_length=32)
SHORT = TrainOptions(steps=6, batch_size=2, lr=1e-2)
CPU = torch.device("cpu")


def decodable(
    family: str, tokenizer: Any, text: Path, folder: Path, method: Any = None, reach: Any = "all"
) -> tuple[Mixture, Offer, Delta]:
    """The four models of an owner, with the offer and the delta that they come from."""
    model = language_model(family)
    offer, record = make_offer(
        model, adapter=ends(1, 1), recipe=[Drop(keep=2), Narrow(feed_forward=0.5)],
        data=text, task=TASK, processor=tokenizer, reach=reach, device="cpu",
    )  # fmt: skip
    tune = run_tune(offer, text, method or LoRA(rank=2), options=SHORT, task=TASK, reach=reach)
    tune.delta.save(folder / "delta")
    delta = Delta.load(folder / "delta")
    plugged = merge_delta(model, delta, record)
    tuned = with_delta(offer, delta)
    batch = inputs_for(model)
    torch.testing.assert_close(output_of(tuned, batch), output_of(tune.model, batch))
    return Mixture(model, plugged, offer.model, tuned, 0.25), offer, delta


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_teacher_is_the_mixture_of_log_probabilities(
    family: str, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    mixture, _, _ = decodable(family, tokenizer, text_file, tmp_path)
    batch = inputs_for(mixture.full)
    full, plugged, emulator, tuned = (
        output_of(model, batch).double().log_softmax(-1) for model in mixture.models()
    )
    slow = torch.empty_like(full)
    for row in range(full.shape[0]):
        for place in range(full.shape[1]):
            at = (row, place)
            scores = plugged[at] + 0.25 * ((tuned[at] - emulator[at]) - (plugged[at] - full[at]))
            slow[at] = scores - scores.exp().sum().log()
    found = output_of(mixture, batch).double().log_softmax(-1)
    torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-5)
    mixture.strength = 0.0
    assert torch.equal(output_of(mixture, batch), output_of(mixture.plugged, batch))


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("family", "method", "reach"),
    [("llama", LoRA(rank=2), "all"), ("gpt2", Full(), "adapter"), ("qwen2", Full(), "adapter")],
)
def test_the_student_comes_nearer_to_its_teacher_and_the_models_stay(
    family: str, method: Any, reach: Any, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    mixture, _, _ = decodable(family, tokenizer, text_file, tmp_path, method, reach)
    mixture.strength = 1.0
    before, batch = state(mixture), inputs_for(mixture.full)
    how = Decode(str(text_file), steps=40, batch_size=4, lr=5e-3, rank=4, max_length=32)
    student = how(mixture, tokenizer, how.data("text"), CPU)
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
    assert [*student.state_dict()] == [*mixture.full.state_dict()]
    rows = how.rows(mixture.plugged, tokenizer, how.data("text"))
    batch = TASK.collate([rows[0], rows[1]])
    inputs = {"input_ids": batch["input_ids"]}
    teacher = output_of(mixture, inputs)
    far = plain_divergence(output_of(mixture.plugged, inputs), teacher)
    near = plain_divergence(output_of(student, inputs), teacher)
    assert near < 0.3 * far


def test_without_strength_the_plugged_model_stays_as_it_is(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    mixture, _, _ = decodable("llama", tokenizer, text_file, tmp_path)
    mixture.strength = 0.0
    how = Decode(str(text_file), steps=10, batch_size=2, rank=4, max_length=32)
    student = how(mixture, tokenizer, how.data("text"), CPU)
    rows = how.rows(mixture.plugged, tokenizer, how.data("text"))
    inputs = {"input_ids": TASK.collate(rows[:2])["input_ids"]}
    found, wanted = output_of(student, inputs), output_of(mixture.plugged, inputs)
    assert plain_divergence(found, wanted) < 5e-5  # AdamW moves by rounding errors


def test_a_model_in_bfloat16_is_taught_in_float32_and_comes_back_in_bfloat16(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    mixture, _, _ = decodable("llama", tokenizer, text_file, tmp_path)
    mixture = copy.deepcopy(mixture).bfloat16()
    how = Decode(str(text_file), steps=2, max_length=32)
    student = how(mixture, tokenizer, how.data("text"), CPU)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert torch.isfinite(output_of(student, inputs_for(student))).all()


@pytest.mark.parametrize("family", sorted(LANGUAGE.keys() - {"gemma2"}))  # which caps its logits
def test_rows_are_drawn_from_the_model_as_it_predicts(family: str, tokenizer: Any) -> None:
    model = language_model(family)
    sharp = copy.deepcopy(model)
    head = sharp.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * 0)
    bias = torch.zeros(head.out_features)
    bias[7], bias[9] = 100.0, 99.0  # 7 at 73%, and 9 at 27%
    head.bias = torch.nn.Parameter(bias)
    drawn = sampled_rows(sharp, tokenizer, None, count=40, length=20, seed=1)
    rows = torch.stack([row["input_ids"] for row in drawn])
    assert rows.shape == (40, 20)
    assert len(set(rows[:, 0].tolist())) > 30
    assert set(rows[:, 1:].flatten().tolist()) == {7, 9}
    assert 0.68 < (rows[:, 1:] == 7).float().mean() < 0.78
    again = sampled_rows(sharp, tokenizer, None, count=40, length=20, seed=1)
    assert torch.equal(rows, torch.stack([row["input_ids"] for row in again]))


def test_rows_begin_with_those_of_a_file(tokenizer: Any, text_file: Path) -> None:
    model = language_model("llama")
    given: Any = rows_of(TASK, text_file, tokenizer, model)
    drawn = sampled_rows(model, tokenizer, given, count=200, length=24, seed=0)
    assert len(drawn) == 200
    for index, row in enumerate(drawn):
        own = given[index % len(given)]["input_ids"]
        assert torch.equal(row["input_ids"][:16], own[:16])
        assert len(row["input_ids"]) == 24


def test_what_cannot_be_decoded_is_refused(tokenizer: Any, text_file: Path, tmp_path: Path) -> None:
    _, offer, delta = decodable("llama", tokenizer, text_file, tmp_path)
    decoding = Decoding(Decode("sample"), offer, CPU)
    decoding.check(delta)
    with pytest.raises(OffsiteError, match="kept apart"):
        decoding.check(delta, kept_apart=True)
    other = replace(offer, manifest=offer.manifest.model_copy(update={"id": "0" * 32}))
    with pytest.raises(OffsiteError, match="tuned on another offer"):
        replace(decoding, offer=other).check(delta)
    prompt = delta.manifest.model_copy(update={"method": {"kind": "prompt"}})
    with pytest.raises(OffsiteError, match="kept apart"):
        decoding.check(replace(delta, manifest=prompt))
    pictures = offer.manifest.model_copy(update={"task": "image-classification"})
    with pytest.raises(OffsiteError, match="cannot draw pictures"):
        replace(decoding, offer=replace(offer, manifest=pictures)).check(delta)
    for changes in ({"strength": 0.0}, {"strength": 2.0}, {"steps": 0}, {"samples": 0}):
        with pytest.raises(OffsiteError):
            Decode("sample", **changes)
    with pytest.raises(OffsiteError, match=r"no data file 'nothing\.txt'"):
        Decoding(Decode("sample:nothing.txt"), offer, CPU).check(delta)


def test_the_command_writes_a_model_that_predicts_what_was_decoded(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    model, record = model_folder(), tmp_path / "record.json"
    offer, delta = tmp_path / "offer", tmp_path / "delta"
    words: tuple[Any, ...] = ("--adapter", "ends:1,1", "--keep", 2, "--record", record)
    assert run("offer", model, "--out", offer, "--reach", "all", *words)[0] == 0
    tune = ("--delta", "lora:rank=2", "--reach", "all", "--steps", 8, "--lr", "1e-2")
    made = run("tune", offer, "--data", text_file, "--out", delta, "--max-length", 32, *tune)
    assert made[0] == 0, made[2]
    plug = ("plug", model, delta, "--record", record)
    before = record.read_bytes()
    for wrong, words in (
        ("needs the offer", ("--decode", text_file)),
        ("no data file", ("--decode", "sample:nothing.txt", "--offer", offer)),
        ("has no effect", ("--offer", offer)),
        ("at most 1", ("--decode", "sample", "--offer", offer, "--decode-strength", 3)),
        ("kept apart", ("--decode", "sample", "--offer", offer, "--as-adapter")),
    ):
        status, _, error = run(*plug, "--out", tmp_path / "refused", *words)
        assert status == 2 and wrong in error, error
        assert not (tmp_path / "refused").exists() and record.read_bytes() == before
    assert run(*plug, "--out", tmp_path / "plain")[0] == 0
    words = ("--decode", text_file, "--offer", offer, "--decode-strength", 1, "--decode-steps", 40)
    status, out, error = run(*plug, "--out", tmp_path / "decoded", "--again", "--json", *words)
    assert status == 0, error
    assert json.loads(out)["form"] == "a plain transformers checkpoint"
    models = {
        name: transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        for name, folder in (
            ("full", model), ("plugged", tmp_path / "plain"), ("student", tmp_path / "decoded"),
        )
    }  # fmt: skip
    loaded = Offer.load(offer)
    emulators = (loaded.model, with_delta(loaded, Delta.load(delta)))
    teacher = Mixture(models["full"], models["plugged"], *emulators, 1.0)
    rows = Decode(str(text_file), max_length=64).data("text").rows(loaded.processor, models["full"])  # type: ignore[union-attr]
    inputs = {"input_ids": TASK.collate(rows[:2])["input_ids"]}
    wanted = output_of(teacher, inputs)
    far = plain_divergence(output_of(models["plugged"], inputs), wanted)
    near = plain_divergence(output_of(models["student"], inputs), wanted)
    assert near < 0.5 * far
