"""An emulator near guessing is called so, and a long recipe says what it costs before it begins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from offsite.owner.judgement import judge_emulator
from offsite.tasks.task import Evaluation
from tests.support import Run
from tests.support.models import language_model


def test_an_emulator_near_guessing_is_called_so() -> None:
    model = language_model("llama")
    guessing = math.log(model.config.vocab_size)
    bad = Evaluation("loss", 0.9 * guessing, False, 100)
    warning = judge_emulator(model, bad)
    assert warning is not None and f"{guessing:.2f} nats" in warning
    assert judge_emulator(model, Evaluation("loss", 0.8 * guessing, False, 100)) is None
    assert judge_emulator(model, Evaluation("accuracy", 99.0, True, 100)) is None
    assert judge_emulator(model, None) is None


def test_the_cost_of_a_recipe_is_said_before_it_begins(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    words = ("--keep", 1, "--distill-steps", 1, "--data", text_file, "--max-length", 16)
    status, out, err = run("offer", model_folder("llama"), "--out", tmp_path / "o", *words)
    assert status == 0 and "distill: 8 rows of data, at most 128 tokens, about " in err
    assert "hardly better than guessing" in " ".join(out.split())  # a random model guesses
