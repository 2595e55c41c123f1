"""What is wrong with the owner's own model is named, with the file or the setting to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import Run

FAULTS = {
    "tokenizer_config.json tokenizer_class BertTokenizer": (
        "cannot read a text (WordPiece error: Missing [UNK] token from the vocabulary); check "
        "'tokenizer_class'"
    ),
    "tokenizer_config.json chat_template {%": "leave it out with --leave-out chat-template",
    "config.json hidden_act nope": "there is nothing named 'nope'",
    "config.json num_attention_heads 3": "not a multiple of the number of attention heads (3)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_is_named(fault: str, run: Run, model_folder: Any, tmp_path: Path) -> None:
    file, key, value = fault.split()
    model = model_folder("llama")
    content = json.loads((model / file).read_text())
    changed = {**content, key: int(value) if value.isdigit() else value}
    (model / file).write_text(json.dumps(changed))
    words = ("offer", model, "--out", tmp_path / "offer", "--adapter", "ends:2,2", "--keep", 1)
    status, _, err = run(*words)
    assert status == 2 and FAULTS[fault] in " ".join(err.split()), err
    assert "unexpected error" not in err
    assert not (tmp_path / "offer").exists() and not (tmp_path / "offer.record.json").exists()
