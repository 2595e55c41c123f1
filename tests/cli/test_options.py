"""Training options are said once: every field is a flag, with the help of its docstring."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from offsite.cli import options as o
from offsite.cli.groups import field_help
from offsite.lab.experiment import UNUSED
from offsite.training.options import TrainOptions
from tests.support import Run
from tests.support.pages import COMMANDS

FIELDS = [field.name for field in fields(TrainOptions)]
LEFT_OUT: dict[str, set[str]] = {
    "tune": set(),
    "lab": set(o.NO_EFFECT_IN_LAB),
    "sweep": set(o.NO_EFFECT_IN_LAB),
    "prompt-decoder": {"head_lr", "patience", "eval_every", "shard"},
}


def test_every_field_has_help() -> None:
    assert list(field_help(TrainOptions)) == FIELDS
    for words in field_help(TrainOptions).values():
        assert words[0].isupper() and words.endswith(".") and "`" not in words


@pytest.mark.parametrize("name", LEFT_OUT)
def test_every_field_is_an_option(name: str) -> None:
    options = {option.name: option for option in COMMANDS[name].params}
    assert {field for field in FIELDS if field in options} == set(FIELDS) - LEFT_OUT[name]
    for field in fields(TrainOptions):
        if field.name in options:
            default = options[field.name].default
            assert (tuple(default) if isinstance(default, list) else default) == field.default
            assert getattr(options[field.name], "help", "") == field_help(TrainOptions)[field.name]


def test_a_lab_leaves_out_what_has_no_effect_in_it() -> None:
    assert set(o.NO_EFFECT_IN_LAB) == set(UNUSED)


def test_one_default_for_the_longest_window() -> None:
    found = {
        option.default
        for command in COMMANDS.values()
        for option in command.params
        if option.name == "max_length"
    }
    assert found == {o.MAX_LENGTH}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--seed", -1), "is not a seed"),
        (("--schedule", "sinus"), "'sinus'"),
        (("--warmup", 1.5), "warmup of 1.5"),
        (("--weight-decay", -1), "weight_decay of 0"),
        (("--eval-every", 0), "1 or more"),
    ],
)
def test_a_bad_value_is_one_sentence(
    words: tuple[object, ...], sentence: str, run: Run, tmp_path: Path
) -> None:
    status, _, err = run("tune", "nowhere", "--out", tmp_path / "delta", *words)
    assert status == 2 and sentence in err and err.count("\n") == 1, err
