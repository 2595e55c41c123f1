"""The lab's tables: every number with its spread and interval, and nothing cut at any width."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from offsite.cli.lab import show_rows
from offsite.lab.environment import environment
from offsite.report.runs import group
from offsite.report.sections import by_task
from offsite.report.summary import differences, signed, summary
from offsite.report.tables import intervals_csv, latex, markdown
from offsite.report.terminal import compared, terminal
from offsite.scores.statistics import paired_bootstrap
from tests.support import Run


def row(recipe: str, seed: int, task: str = "text", delta: str = "full") -> dict[str, Any]:
    """A row as the lab writes it; every fourth item is as good in the emulator."""
    scores = {"zero_shot": 5.0, "full_tuned": 3.0, "emulator_zero_shot": 6.0 + seed / 9}
    items = {
        "plug_in": [3.2 + 0.01 * seed] * 40,
        "emulator_tuned": [3.2 + 0.01 * seed + 0.1 * (i % 4) for i in range(40)],
        "full_tuned": [3.0] * 40,
    }
    scores |= {key: sum(values) / len(values) for key, values in items.items()}
    return {
        "model": "some/model", "task": task, "recipe": recipe, "delta": delta, "seed": seed,
        "metric": "loss", "higher_is_better": False, "scores": scores, "recovered": 0.9,
        "gap": scores["emulator_tuned"] - scores["plug_in"], "verbatim": 0.4,
        "bytes_offer": 6e6, "bytes_model": 1e7,
        "details": {key: {"value": scores[key], "items": values} for key, values in items.items()},
    }  # fmt: skip


ROWS = [row(f"uniform 2-{k}-2 + distil", seed) for k in range(6) for seed in (0, 1, 2)]


def text_at(width: int, *parts: Any) -> str:
    """What a terminal of a width shows, as ``offsite`` prints it."""
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    for part in parts:
        console.print(part, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:3], [*ROWS, row("x", 0, task="other")]])
def test_tables_fit_the_terminal(width: int, rows: list[dict[str, Any]]) -> None:
    shown = text_at(width, terminal(rows), compared(rows))
    assert max(len(line) for line in shown.splitlines()) <= width
    plug = f"{math.exp(3.21):.1f}"
    assert shown.count(plug) >= len(group(rows)) // 2 and "…" not in shown
    for words in ("148.4", "90.0%", "[95% interval over items]", "+0.150 "):
        assert words in shown, words


def test_the_interval_is_of_the_items_and_the_deviation_of_the_seeds() -> None:
    found = differences(group(ROWS[:3])[0])["plug_in - emulator_tuned"]
    one = ROWS[0]["details"]
    single = paired_bootstrap(
        one["plug_in"]["items"], one["emulator_tuned"]["items"], higher_is_better=False
    )
    assert found.interval is not None and found.interval.items == 40
    assert (found.interval.low, found.interval.high) == pytest.approx((single.low, single.high))
    assert found.over_seeds.mean == pytest.approx(0.15) == found.interval.mean
    assert found.over_seeds.std == pytest.approx(0.0, abs=1e-9) and found.over_seeds.count == 3
    other = differences(group(ROWS[:3])[0])["plug_in - full_tuned"]
    assert other.over_seeds.mean == pytest.approx(-0.21)
    assert other.over_seeds.std == pytest.approx(0.01)
    assert other.interval is not None and other.interval.high < 0


def test_every_form_of_the_results_has_the_intervals(tmp_path: Path) -> None:
    show_rows(ROWS, tmp_path, True, {})
    setting = json.loads((tmp_path / "results.json").read_text())["settings"][0]
    assert setting["seeds"] == [0, 1, 2] and setting["scores"]["plug_in"]["count"] == 3
    assert setting["differences"]["plug_in - full_tuned"]["interval"]["level"] == 0.95
    assert summary(ROWS)[0]["scores"]["emulator_zero_shot"]["std"] == pytest.approx(1 / 9)
    for name in ("results.md", "results.tex"):
        assert "+0.150" in (tmp_path / name).read_text()
    with (tmp_path / "intervals.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 18 and float(lines[1]["low"]) < -0.2 and lines[0]["items"] == "40"


def test_names_cannot_break_a_table() -> None:
    odd = [row("a|b & #1_{x}", seed) for seed in (0, 1)]
    lines = markdown(odd).split("\n\n")[0].splitlines()
    assert r"a\|b & #1_{x}" in lines[2]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert r"a|b \& \#1\_\{x\} & full" in latex(odd) and r"$\pm$" in latex(odd)


def test_lines_that_stand_apart_look_apart() -> None:
    plain = [row("a", 0), row("b", 0)]
    assert markdown(plain).startswith("| recipe | delta |")
    other = {**row("a", 0), "eval_data": "2", "eval_name": "books.txt"}
    head, _, first, second = markdown([{**plain[0], "eval_name": "wiki.txt"}, other]).splitlines()[
        :4
    ]
    assert head.startswith("| scored on | recipe | delta |")
    assert first.startswith("| wiki.txt | a |") and second.startswith("| books.txt | a |")
    moved = markdown([plain[0], {**row("a", 0), "model": "other/m"}])
    assert moved.startswith("| model | recipe |") and "| other/m | a |" in moved


def test_without_items_or_pairs_there_is_no_second_table() -> None:
    bare = [{**found, "details": {}} for found in ROWS]
    assert "[" not in intervals_csv(bare) and intervals_csv(bare).count(",,,,") == 18
    alone = [{**row("r", 0), "scores": {"zero_shot": 5.0, "full_tuned": 3.0}}]
    assert not text_at(80, compared(alone)).strip()
    assert "differences" not in markdown(alone).lower() and latex(alone).count("tabular") == 2


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("OFFSITE_COMMIT", raising=False)
    assert "commit" not in environment() and "python" in environment()


def test_zero_has_no_sign() -> None:
    assert [signed(v, "loss") for v in (0.0, -1e-9, 0.1, -0.1)] == [
        "0.000",
        "0.000",
        "+0.100",
        "-0.100",
    ]
    assert signed(-0.0001, "accuracy") == "0.0" and signed(0.013, "accuracy") == "+1.3"


@pytest.mark.parametrize(
    ("option", "decay", "lost"),
    [
        ("--full-lr", 99, {"full_tuned", "healed"}),
        ("--lr", 99, {"emulator_tuned", "plug_in"}),
        ("--lr", 0, {"plug_in"}),  # finite, but beyond what the offer allows
    ],
)
def test_a_run_that_diverges_is_unknown_and_kills_no_later_one(
    option: str,
    decay: float,
    lost: set[str],
    run: Run,
    model_folder: Any,
    text_file: Path,
    tmp_path: Path,
) -> None:
    words: tuple[object, ...]
    words = ("lab", model_folder("llama"), "--data", text_file, "--eval-data", text_file)
    words += ("--keep", 1, "--steps", 3, "--max-length", 32, "--out", tmp_path / "lab", "--json")
    for _ in range(2):  # computed, and from the cache
        status, out, err = run(*words, option, 99, "--weight-decay", decay)
        assert status == 0 and "unknown in 1 of 1 runs, which diverged" in err, err
        (found,) = json.loads(out)["rows"]
        assert lost <= set(found["diverged"]) and not lost & set(found["scores"])
        assert {"zero_shot", "emulator_zero_shot"} <= set(found["scores"])
    assert "NaN" not in "".join(path.read_text() for path in (tmp_path / "lab").rglob("*.json"))
    page = tmp_path / f"page{option}.html"
    status, _, err = run("report", tmp_path / "lab", "--out", page)
    assert status == 0 and "which diverged" in page.read_text(), err


def test_only_rows_that_differ_by_their_seed_are_averaged() -> None:
    plain = row("r", 0)
    others = [
        {**plain, "model": "other/model"},
        {**plain, "eval_data": "12ab", "eval_name": "test.txt"},
        {**plain, "max_length": 512},
        {**plain, "setup": "x"},
    ]
    settings = group([plain, row("r", 1), *others])
    assert [len(setting.rows) for setting in settings] == [2, 1, 1, 1, 1]
    heads = [(model, task) for model, task, _ in by_task(settings)]
    assert ("other/model", "text") in heads and ("some/model", "text (test.txt)") in heads
    assert len(heads) == 4 and sum(len(found) for found in by_task(settings).values()) == 5
    assert [s.label for s in settings if not s.fact("eval_data") and not s.fact("max_length")] == [
        "r · full (setup 1)",
        "r · full",
        "r · full (setup 2)",
    ]
    assert [model for model, *_ in by_task(group([plain]))] == ["model"]


def test_the_lab_keeps_two_ways_to_run_apart(
    run: Run, model_folder: Any, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("a bird sat on a log and the cat sang. " * 40)
    entry = '[[tasks]]\ndata = "train.txt"\neval_data = "{}"\noptions = {{steps = {}}}\n'
    said = f'models = ["{model_folder("llama")}"]\nmax_length = 32\n[recipes]\na = []\n'
    ways = (("train.txt", 1), ("train.txt", 2), ("other.txt", 1))
    said += "".join(entry.format(*way) for way in ways)
    (tmp_path / "e.toml").write_text(said)
    status, out, err = run("lab", tmp_path / "e.toml", "--out", tmp_path / "lab", "--json")
    assert status == 0, err
    settings = json.loads(out)["settings"]
    assert [s["seeds"] for s in settings] == [[0]] * 3
    assert [s["eval_name"] for s in settings] == ["train.txt", "train.txt", "other.txt"]
    (tmp_path / "e.toml").write_text("seeds = [1, 1]\n" + said)
    status, _, err = run("lab", tmp_path / "e.toml", "--out", tmp_path / "lab")
    assert status == 2 and "hold one twice" in err
