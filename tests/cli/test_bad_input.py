"""Bad input to a command is one clear sentence, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import Run

BAD: dict[str, tuple[list[str], str]] = {
    "no model": (["offer", "{d}/none", "--out", "{d}/x"], "no local folder"),
    "adapter range": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--adapter", "0,6"],
        "out of range"),
    "adapter text": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--adapter", "top"],
        "or learned:COUNT"),
    "nothing may leave": (["offer", "{m}", "--out", "{d}/x", "--adapter", "ends:3,2"], "--whole"),
    "no limit": (["offer", "{m}", "--out", "{d}/x", "--keep", "1", "--audit-data", "{t}"],
        "have no effect without --max-recovered"),
    "a copy": (["offer", "{m}", "--out", "{d}/x", "--recipe", "int8"], "a copy of the model"),
    "no budget": (["offer", "{m}", "--out", "{d}/x", "--recipe", "prune"], "--whole"),
    "whole and keep": (["offer", "{m}", "--out", "{d}/x", "--whole", "--keep", "1"], "--whole"),
    "keep": (["offer", "{m}", "--out", "{d}/x", "--keep", "3"], "Cannot keep 3 of 2"),
    "dtype": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--dtype", "int8"],
        "is not a dtype"),
    "device": (["offer", "{m}", "--out", "{d}/x", "--recipe", "gradot", "--budget", "0.5",
                "--data", "{t}", "--device", "abc"], "There is no device"),
    "recipe and keep": (["offer", "{m}", "--out", "{d}/x", "--recipe", "{d}/r.json", "--keep", "1"],
                        "sets every step already"),
    "learned unused": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--learned", "{d}/none"],
                       "has no effect"),
    "device of nothing": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--device", "abc"],
        "no device"),
    "record nowhere": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--record", "{t}/r"],
                       "cannot be written"),
    "record of another": (["offer", "{n}", "--keep", "1", "--out", "{d}/x", "--record", "{r}"],
        "another model"),
    "name": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--name", "a\nb"],
        "printable characters"),
    "no tokenizer": (["offer", "{n}", "--keep", "1", "--out", "{d}/x", "--eval-data", "{t}"],
        "no tokenizer"),
    "no data": (["offer", "{m}", "--keep", "1", "--out", "{d}/x", "--distill-steps", "2"],
        "--data"),
    "preset": (["offer", "{m}", "--out", "{d}/x", "--recipe", "magic"], "is not a preset"),
    "out exists": (["offer", "{m}", "--out", "{m}"], "exists already"),
    "data file": (["tune", "{o}", "--data", "{d}/none.txt", "--out", "{d}/x"], "no data file"),
    "empty": (["tune", "{o}", "--data", "{d}/empty.txt", "--out", "{d}/x"], "is empty"),
    "jsonl": (["tune", "{o}", "--data", "{d}/bad.jsonl", "--out", "{d}/x"], "Line 2 of"),
    "method": (["tune", "{o}", "--data", "{t}", "--out", "{d}/x", "--delta", "lra"], "choose one"),
    "option": (["tune", "{o}", "--data", "{t}", "--out", "{d}/x", "--delta", "lora:r=1"], "rank"),
    "lr": (["tune", "{o}", "--data", "{t}", "--out", "{d}/x", "--lr", "-1"], "learning rate"),
    "head lr": (["tune", "{o}", "--data", "{t}", "--out", "{d}/x", "--delta", "head",
                 "--lr", "1e-3"], "--head-lr"),
    "not an offer": (["tune", "{m}", "--data", "{t}", "--out", "{d}/x"], "manifest.json"),
    "resume": (["tune", "{o}", "--data", "{t}", "--out", "{d}/x", "--resume"], "nothing to resume"),
    "record": (["plug", "{m}", "{o}", "--record", "{d}/none", "--out", "{d}/x"], "no file"),
    "inspect": (["inspect", "{t}"], "is not an offer"),
    "lab": (["lab", "{m}", "--data", "{t}"], "--eval-data"),
    "seeds": (["lab", "{m}", "--eval-data", "{t}", "--seeds", "0,0"], "hold one twice"),
    "calibration": (["lab", "{m}", "--eval-data", "{t}", "--recipe", "crash@0.5"], "calibration"),
    "sweep": (["sweep", "{m}", "--data", "{t}", "--eval-data", "{t}", "--adapter", "ends:1,1",
               "--out", "{d}/x"], "'influence@0.6' needs calibration data"),
    "target": (["sweep", "{m}", "--data", "{t}", "--eval-data", "{t}", "--target",
                "recovered=0.9,byte=0.1"], "is not a target"),
    "picture": (["importance", "{m}", "--data", "{t}", "--out", "{d}/p.xyz"],
                "does not end like a picture"),
    "distil alone": (["lab", "{m}", "--eval-data", "{t}", "--recipe", "crash@0.5",
                      "--distill-steps", "2"], "needs --keep"),
    "adapter learned": (["lab", "{m}", "--eval-data", "{t}", "--adapter", "learned:2"],
                        "no layer_replace step"),
    "full lr": (["lab", "{m}", "--eval-data", "{t}", "--full-lr", "0"], "learning rate of 0"),
    "learn": (["importance", "{m}", "--data", "{t}", "--learn", "{d}/x", "--learned", "{m}"],
              "give one of the two"),
    "learn steps": (["importance", "{m}", "--data", "{t}", "--learn-steps", "3"],
                    "have no effect without --learn"),
    "report": (["report", "{d}/none", "--out", "{d}/x.html"], "no file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """Model, offer and data files that the bad commands start from."""
    from offsite.compress.drop import Drop
    from offsite.owner.offering import make_offer
    from tests.support.models import TEXT, language_model

    base = tmp_path_factory.mktemp("ground")
    model = language_model("llama")
    model.save_pretrained(base / "model")
    tokenizer.save_pretrained(base / "model")
    language_model("llama", seed=1).save_pretrained(base / "other")
    offer, record = make_offer(model, recipe=[Drop(keep=1)], processor=tokenizer)
    offer.save(base / "offer")
    record.save(base / "record.json")
    (base / "r.json").write_text("[]")
    (base / "train.txt").write_text(TEXT)
    (base / "empty.txt").write_text("")
    (base / "bad.jsonl").write_text('{"text": "fine"}\n{"text": private words}\n')
    names = {"m": "model", "n": "other", "o": "offer", "t": "train.txt", "r": "record.json"}
    return {"d": base, **{key: base / name for key, name in names.items()}}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    case: str, run: Run, ground: dict[str, Path]
) -> None:
    words, message = BAD[case]
    before = sorted(path.name for path in ground["d"].iterdir())
    status, out, err = run(*(word.format(**ground) for word in words))
    assert status == 2, err
    assert message in err and "Traceback" not in err and "private words" not in err
    assert out == "" and len([line for line in err.splitlines() if line.strip()]) == 1, err
    assert sorted(path.name for path in ground["d"].iterdir()) == before


def test_only_scores_of_the_same_data_and_length_are_merged(
    run: Run, ground: dict[str, Path], tmp_path: Path
) -> None:
    score: tuple[Any, ...] = ("score", ground["m"], "--data", ground["t"], "--json")
    found = json.loads(run(*score)[1])
    assert not {"eval_data", "count"} & set(found)  # they say something of the private data
    assert set(found["details"]["zero_shot"]) == {
        "metric", "value", "higher_is_better", "stderr", "extra",
    }  # fmt: skip
    score = (*score, "--details")
    status, out, err = run(*score)
    found = json.loads(out)
    assert status == 0 and found["task"] == "text" and found["max_length"] == 512, err
    assert len(found["eval_data"]) == 64 and found["count"] > 10
    theirs = {**found, "scores": {"full_tuned": 1.0}, "details": {}}
    (tmp_path / "same.json").write_text(json.dumps({**theirs, "max_length": 512}))
    status, out, err = run(*score, "--merge", tmp_path / "same.json")
    assert status == 0 and set(json.loads(out)["scores"]) == {"zero_shot", "full_tuned"}, err
    odd = {"max_length": 256, "task": "chat", "eval_data": "0" * 64, "count": 3}
    bad = [({key: value}, f"another '{key}'") for key, value in odd.items()]
    bad += [({"details": [1]}, "not a scores file"), ({"verbatim": "x"}, "not a scores file")]
    bad += [({"scores": {"plug_in": "x"}}, "odd.json' is not a scores file")]
    for change, message in bad:
        (tmp_path / "odd.json").write_text(json.dumps({**theirs, **change}))
        status, out, err = run(*score, "--merge", tmp_path / "odd.json")
        assert status == 2 and message in err and "Traceback" not in err and not out, (change, err)
