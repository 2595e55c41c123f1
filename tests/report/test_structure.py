"""The tree of a model or a delta, and ``offsite inspect`` on what was plugged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from offsite.cli import main
from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.model.split import ends
from offsite.owner.offering import make_offer
from offsite.owner.plugging import keep_apart
from offsite.owner.writing import tuned_names
from offsite.report.inspection import inspect_path
from offsite.report.structure import delta_tree, model_tree, ranges
from offsite.tasks.text.causal import CausalText
from offsite.training.options import TrainOptions
from offsite.tuner.tuning import tune
from tests.support.methods import METHOD_CASES, small_model


def picture(*parts: Any, colours: bool = False) -> str:
    """What a person sees; with ``colours``, as terminal codes."""
    console = Console(width=120, color_system="standard" if colours else None)
    with console.capture() as capture:
        for part in parts:
            console.print(part, highlight=False)
    return capture.get()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: Any, tokenizer: Any) -> Path:
    """``model``, ``offer``, ``record.json``, and for some methods a delta and the plugged one."""
    folder = tmp_path_factory.mktemp("exchange")
    (folder / "train.txt").write_text("the cat sat on the mat and sang of it. " * 40)
    model = small_model("llama")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    offer, record = make_offer(
        model, adapter=ends(2, 1), recipe=[Drop(keep=2)], processor=tokenizer
    )
    offer.save(folder / "offer")
    record.save(folder / "record.json")
    options = TrainOptions(steps=2, batch_size=2, lr=2e-2)
    for name in ("full-mlp", "lora", "bottleneck", "masking", "intrinsic_prompt"):
        delta = tune(
            offer, folder / "train.txt", METHOD_CASES[name], options=options, task=CausalText(32)
        )
        delta.save(folder / name)
        keep_apart(model, delta, record).save(folder / f"{name}-plugged")
    return Path(folder)


def test_runs_are_spelt_short() -> None:
    assert ranges((0, 1, 2, 7, 22, 23)) == "0-2, 7, 22-23"
    assert ranges([4]) == "4"


def test_a_tree_folds_repeats_counts_and_colours(exchange: Path) -> None:
    model = small_model("llama")
    after = small_model("llama")
    for index in (0, 1, 5):
        after.model.layers[index].mlp.up_proj.weight.data.add_(1)
    names = tuned_names(model, after)
    assert names == {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1, 5)}
    total, tuned = sum(p.numel() for p in after.parameters()), 3 * 32 * 16
    text = picture(model_tree(after, names))
    assert f"LlamaForCausalLM  {total:,}  100.0%  tuned {tuned:,} (6.4%)" in text
    assert "0-1, 5 x3" in text and "2-4 x3" in text and "up_proj.weight (32, 16)  512" in text
    coloured = picture(model_tree(after, names), colours=True)
    assert "\x1b[1;32mup_proj.weight" in coloured and "\x1b[2mdown_proj.weight" in coloured
    assert "1,536" in picture(model_tree(METHOD_CASES["full-mlp"].attach(after, (1,)).model))


def test_a_delta_is_shown_alone_and_in_its_place(exchange: Path) -> None:
    for name, inside in (
        ("lora", "lora_A.weight (2, 16)"),
        ("bottleneck", "bottleneck"),
        ("masking", "mask (64)"),
        ("intrinsic_prompt", "intrinsic_prompt (10)"),
    ):
        data, lines = inspect_path(exchange / name)
        alone = picture(*lines)
        assert inside in alone and "base_model" not in alone and "embed" not in alone
        assert data["bytes"] > 0
        placed = picture(*inspect_path(exchange / name, str(exchange / "offer"))[1])
        assert inside in placed and "embed_tokens" in placed and "tuned" in placed
        full = picture(*inspect_path(exchange / f"{name}-plugged", str(exchange / "model"))[1])
        assert "embed_tokens" in full and "tuned" in full
        if name != "intrinsic_prompt":
            assert "0-1, 4 x3" in placed and "2-3 x2" in placed
            assert "0-1, 5 x3" in full and "2-4 x3" in full
    assert "lora:rank=2" in picture(*inspect_path(exchange / "lora")[1])
    _, lines = inspect_path(exchange / "intrinsic_prompt-plugged")
    assert "prompt_embeddings (3, 16)" in picture(*lines)
    tree = delta_tree("x", {"base_model.model.model.layers.0.a.weight": (2,)})
    assert "model.layers.0.a.weight (2)" in picture(tree)


def test_a_base_that_does_not_belong_is_refused(exchange: Path, tmp_path: Path) -> None:
    make_offer(small_model("llama"), adapter=ends(2, 1))[0].save(tmp_path / "other")
    with pytest.raises(OffsiteError, match="does not answer"):
        inspect_path(exchange / "lora", str(tmp_path / "other"))
    with pytest.raises(OffsiteError, match="is not a delta"):
        inspect_path(exchange / "offer", str(exchange / "model"))


def test_a_merged_model_remembers_what_changed(
    exchange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    words = ["plug", exchange / "model", exchange / "full-mlp", "--out", tmp_path / "tuned"]
    for command in (
        [*words, "--record", exchange / "record.json"],
        ["inspect", tmp_path / "tuned"],
    ):
        monkeypatch.setattr(sys, "argv", ["offsite", *map(str, command)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert not end.value.code, err
    assert "0-1, 5 x3" in out and "tuned 4,608" in out
    note = json.loads((tmp_path / "tuned" / "offsite.json").read_text())
    assert len(note["tuned"]) == 9 and all(".mlp." in name for name in note["tuned"])
