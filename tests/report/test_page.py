"""The report page: self-contained, well formed, escaped, and honest in its sentences."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from offsite.compress.drop import Drop
from offsite.errors import OffsiteError
from offsite.owner.offering import make_offer
from offsite.report import write_report
from offsite.report.pictures import LADDER, frontier, importance, ladder, limits
from offsite.report.runs import best, group, make_run, show_bytes
from offsite.report.svg import ticks
from offsite.report.verdict import verdict
from offsite.scores.scores import Scores
from tests.support.models import language_model

SCORES = {
    "zero_shot": 0.5,
    "full_tuned": 0.9,
    "emulator_zero_shot": 0.4,
    "emulator_tuned": 0.6,
    "healed": 0.7,
    "plug_in": 0.8,
}
VOID = {"meta", "line", "rect", "circle", "polyline"}


def row(recipe: str = "drop", seed: int = 0, shift: float = 0.0, **changes: Any) -> dict[str, Any]:
    scores = {key: value + shift for key, value in SCORES.items()} | changes.pop("scores", {})
    items = {"plug_in": [1.0] * 8 + [0.0] * 2, "emulator_tuned": [1.0] * 6 + [0.0] * 4}
    found: dict[str, Any] = {
        "model": "/home/me/bookling", "task": "sst2", "recipe": recipe, "delta": "lora",
        "seed": seed, "scores": scores, "metric": "accuracy", "higher_is_better": True,
        "recovered": 0.75, "gap": scores.get("plug_in", 0) - scores.get("emulator_tuned", 0),
        "margin": scores.get("plug_in", 0) - scores.get("healed", 0),
        "verbatim": 0.4, "bytes_offer": 4e6, "bytes_model": 1e7, "bytes_delta": 1e5,
        "history": [{"step": s, "loss": 3 / s} for s in (1, 2, 3)] + [{"step": 3, "eval_loss": 1}],
        "details": {key: {"items": value, "stderr": 0.1} for key, value in items.items()},
        "positions": [2, 4], "adapter": [0, 5], "total": 6, "seconds_tune": 3.0,
    }  # fmt: skip
    return found | changes


class Checker(HTMLParser):
    """Every tag closed in order; no script, no outside address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag not in ("script", "link", "img", "iframe", "b")
        assert not {"src", "href", "onclick", "onload"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def read(path: Path) -> tuple[str, str]:
    html, checker = path.read_text(), Checker()
    checker.feed(html)
    assert not checker.open, checker.open
    return html, checker.words


def test_one_page_holds_everything_and_asks_nobody(tmp_path: Path) -> None:
    run = {
        "rows": [row(seed=s, shift=s / 100) for s in (0, 1)] + [row("crash", gap=0.1)],
        "command": "offsite lab --model x </pre><script>alert(1)</script>",
        "environment": {"torch": "2.13", "<i>host": "<b>&"},
        "importance": [0.5, 0.1, -0.2, 0.0, 0.3, 0.9],
    }
    out = write_report([run], tmp_path / "report.html")
    html, words = read(out)
    assert "://" not in html and "url(" not in html and "<script" not in html
    assert "nan" not in words and "inf " not in words
    for expected in (
        "bookling on sst2", "accuracy, delta lora", "crash", "± 0.7</small>", "+20.0 points",
        "plug-in against tuned emulator", "4 MB", "40.0%", "Importance of blocks", "offsite lab",
        "prefers-color-scheme: dark", "viewport", "does not tell these positions", "<b>&",
    ):  # fmt: skip
        assert expected in html or expected in words, expected
    assert "/home/me" not in html
    with pytest.raises(OffsiteError, match="exists already"):
        write_report([run], out)


def test_partial_scores_and_plain_score_files_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    known = {"scores": {"zero_shot": 4.0, "plug_in": 3.5}, "metric": "loss"}
    path.write_text(json.dumps({**known, "higher_is_better": False}))
    _, words = read(write_report([path], tmp_path / "r.html", title="Mine"))
    assert (
        "Plugging improves loss from 4.000 to 3.500, by 0.500 (perplexity 54.6 to 33.12)." in words
        and "Mine" in words
    )


def test_offer_folders_are_listed(tokenizer: Any, tmp_path: Path) -> None:
    offer, _ = make_offer(language_model("llama"), recipe=[Drop(keep=1)], processor=tokenizer)
    offer.save(tmp_path / "offer")
    _, words = read(write_report([[row()], tmp_path / "offer"], tmp_path / "r.html"))
    assert "offer: offer" in words and "model.safetensors" in words
    with pytest.raises(OffsiteError, match="None of these inputs holds scores"):
        write_report([tmp_path / "offer"], tmp_path / "other.html")
    manifest = json.loads((tmp_path / "offer" / "manifest.json").read_text())
    name = next(iter(manifest["tensors"]))
    for change in (
        {"files": ["a"]},
        {"files": {"a": {"size": "big", "sha256": "0" * 64}}},
        {"tensors": {name: {"dtype": "F32"}}},
        {"kind": ["delta"]},
    ):
        (tmp_path / "offer" / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(OffsiteError):
            write_report([[row()], tmp_path / "offer"], tmp_path / "other.html")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({}, "75% of what full fine-tuning gains, which reaches 90.0%"),
        ({}, "60.0%, 20.0 points worse than the plug-in; the 95% interval over items is"),
        ({"plug_in": 0.45}, "Tuning did not help"),
        (
            {"plug_in": 0.55},
            "5.0 points better than the plug-in: whoever holds it needs no plug-in",
        ),
        (
            {},
            "weight of the offer reaches 70.0%, 10.0 points worse than the plug-in: the margin",
        ),
        (
            {"healed": 0.8},
            "as good as the plug-in. The margin is not above zero: the tuner does not",
        ),
        ({"healed": 0.85}, "5.0 points better than the plug-in. The margin is not above zero"),
        ({"emulator_tuned": 0.95}, "Unusual: the tuned emulator beats full fine-tuning"),
        ({"emulator_zero_shot": 0.55}, "Unusual: the untuned emulator beats the full model"),
    ],
)
def test_the_verdict_follows_from_the_numbers(scores: dict[str, float], said: str) -> None:
    text = " ".join(verdict(group([row(scores=scores)])))
    assert said in text and "They are not bounds" in text
    assert not re.search(r"\b(private|privacy|safe|secure)\b", text, re.IGNORECASE)


def test_directions_are_turned_so_that_better_is_right(tmp_path: Path) -> None:
    def places(setting: Any) -> list[float]:
        found = ladder(setting, limits([setting]))
        whole = re.findall(r'class="step( back)?"', found)
        return [len(whole), sum(bool(w) for w in whole)]

    good = group([row()])[0]
    assert places(good) == [len(LADDER) - 1, 0]
    turned = {key: -value for key, value in SCORES.items()}
    assert places(group([row(scores=turned, metric="loss", higher_is_better=False)])[0]) == [5, 0]
    assert places(group([row(scores={"plug_in": 0.55})])[0]) == [5, 1]


def test_the_best_setting_and_the_frontier() -> None:
    settings = group(
        [row("a"), row("b", scores={"plug_in": 0.85}, margin=0.1), row("c", margin=0.05)]
    )
    assert best(settings).recipe == "b"
    drawn = frontier(settings)
    assert drawn.count('class="plug"') == 2 and drawn.count('class="model hollow"') == 1
    assert frontier(settings[:1]) == ""


def test_small_things() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(2.0, 2.0) == [2.0]
    assert [show_bytes(v) for v in (None, 12, 4.2e6, 7e12)] == [
        "-",
        "12 bytes",
        "4.2 MB",
        "7e+03 GB",
    ]
    assert "nan" not in importance("flat", [0.0, 0.0])
    bad: Any
    for bad in ({"rows": []}, 3, {"x": 1}):
        with pytest.raises(OffsiteError, match="holds no rows"):
            make_run(bad)
    with pytest.raises(OffsiteError, match="not a scores file"):
        make_run([{"model": "x"}])


def test_many_settings_are_one_picture_and_folded_tables(tmp_path: Path) -> None:
    rows = [
        row(f"r{k}", shift=k / 100, gap=k / 50, importance=[0.1, 0.2, k / 9]) for k in range(12)
    ]
    rows += [row("all of it", shift=0.1, verbatim=1.0)]
    html, words = read(write_report([rows], tmp_path / "r.html"))
    assert "Of 13 settings (1 of them aside, whose offer holds the whole middle), 'r11'" in words
    assert "These are the 6 with the best plug-in score; all 13" in words
    assert "The other 12 settings one by one" in words and "The scores of 13 settings" in html
    assert "learned for r3" in words and "accuracy, delta lora" in words
    assert best(group(rows[-1:])).recipe == "all of it"
    few = read(write_report([rows[:3]], tmp_path / "few.html"))[1]
    assert "one by one" not in few and "These are" not in few


def test_importance_alone_can_be_added(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    path.write_text(json.dumps({"importance": {"influence": [0.3, 0.1]}, "learned": ""}))
    words = read(write_report([[row()], path], tmp_path / "r.html"))[1]
    assert "importance: influence" in words


def test_no_share_of_no_gain_and_no_best_without_a_plug_in() -> None:
    assert Scores("accuracy", True, zero_shot=0.5, full_tuned=0.4, plug_in=0.6).recovered is None
    assert Scores("loss", False, zero_shot=5.0, full_tuned=4.0, plug_in=4.5).recovered == 0.5
    bare = {"zero_shot": 0.5, "emulator_zero_shot": 0.4}
    rows = [{**row(name), "scores": bare, "gap": None} for name in ("a", "b")]
    assert not any("best plug-in" in sentence for sentence in verdict(group(rows)))
