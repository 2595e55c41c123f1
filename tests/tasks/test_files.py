"""Task files, templates and tables: what is read, and how what is wrong is named."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import offsite.tasks
from offsite.errors import OffsiteError
from offsite.tasks import load_task
from offsite.tasks.questions.file import parse_task
from offsite.tasks.questions.template import render
from offsite.tasks.rows import Row, read_rows

GOOD = """\
name = "mine"
kind = "multiple-choice"
prompt = "{goal} - {{so}}:"
choices = ["{first}", "{second}"]
answer = "label"
labels = ["one", "two"]
metric = "accuracy_norm"
train = "data/train.csv"
"""


def test_a_users_own_task_is_one_small_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(
        'goal,first,second,label\n"two\nlines, quoted",a,b,two\nshort,a,b,one\n'
    )
    task = load_task(path, max_length=64)
    source = task.default_source("train")
    assert source is not None and task.default_source("test") is None
    first, second = task.read(source)
    assert first.prompt == "two\nlines, quoted - {so}:" and first.answer == 1
    assert second.where.startswith("Line 4 of") and second.choices == ("a", "b")
    assert (task.name, task.metric) == ("mine", "accuracy_norm")
    as_json = tmp_path / "mine.json"
    as_json.write_text(json.dumps({"name": "q", "kind": "open", "prompt": "{a}", "answer": "b"}))
    assert load_task(as_json).metric == "exact_match"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "mine"', 'name = "Mine!"'), "Line 1 of the task file .*'name'"),
        (('kind = "multiple-choice"', 'kind = "essay"'), "Line 2 .*'kind'"),
        (("{goal}", "{goal.__class__}"), "Line 3 .*placeholder '{goal.__class__}'"),
        (("{goal}", "{goal!r}"), "Line 3 .*placeholder"),
        (("{goal}", "{goal"), "Line 3 .*braces"),
        (('"{first}", "{second}"', '"{first}"'), "Line 4 .*at least two choices"),
        (('labels = ["one", "two"]', 'labels = ["one"]'), "as many 'labels'"),
        (('metric = "accuracy_norm"', 'metric = "exact_match"'), "metric of this kind"),
        (('train = "data', 'training = "data'), "Line 8 .*'training': no such key"),
        (('answer = "label"\n', ""), "'answer'"),
        (('answer = "label"', "answer = "), "Line 5 .*not valid toml"),
    ],
)
def test_bad_task_files_name_file_and_line(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(OffsiteError, match=message) as caught:
        load_task(path)
    assert "mine.toml" in str(caught.value)


def test_unknown_tasks_are_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OffsiteError, match=r"no task 'arc'; use text, chat.*arc_easy.*--task FILE"):
        load_task("arc")
    with pytest.raises(OffsiteError, match="There is no task file"):
        load_task(tmp_path / "absent.toml")


def test_templates_evaluate_nothing() -> None:
    row = Row({"a": "{b}", "b": [1, "x"], "n": 3}, "Line 1 of 'x'")
    assert render("{{{a}}} {b[1]} {n}", row) == "{{b}} x 3"
    with pytest.raises(OffsiteError, match="no entry 2"):
        render("{b[2]}", row)
    with pytest.raises(OffsiteError, match="no column 'c'"):
        render("{c}", row)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"secret": \n', r"Line 3 of .* not valid JSON"),
        ("a.json", '[\n{"a": 1},\n{"secret" 2}\n]', r"Line 3 of .* not valid JSON"),
        ("a.json", '[{"a": 1}', "ends inside its list"),
        ("a.json", '{"a": 1}', "not a JSON list"),
        ("a.tsv", "a\tb\nsecret\n", r"Line 2 of .* 1 columns instead of 2"),
        ("a.csv", "a,b\n", "is empty"),
        ("a.csv", 'a,b\n1,2\n3,"secret\n5,6\n7,"8"\n', "Line 3 of .* quotation mark"),
        ("a.csv", 'a,b\n1,2\n3,"secret\n', "Line 3 of .* quotation mark"),
        ("a.csv", "a,b\n1," + "secret" * 30_000, "Line 2 of .* a field of over 131072"),
        ("a.tsv", "a\tb\n1\t" + "secret" * 30_000, "Line 2 of .* a field of over 131072"),
        ("a.json", '[{"a": 1}]\n{"secret": 2}\n', "Line 2 of .* goes on after the end"),
        ("a.json", '[\n{"a": ' + "[" * 100_000, "Line 2 of .* not valid JSON"),
        ("a.jsonl", "[" * 100_000, "Line 1 of .* not valid JSON"),
        ("a.jsonl", '{"a": 1} {"secret": 2}', "Line 1 of .* not valid JSON"),
        ("a.jsonl", '{"a": ["secret \\uD800"]}', "Line 1 of .* half of a surrogate pair"),
        ("a.json", '[{"a": "\\udc00 secret"}]', "Line 1 of .* half of a surrogate pair"),
        ("a.txt", "secret", "not a table of examples"),
    ],
)
def test_bad_tables_name_the_line_and_never_its_text(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(OffsiteError, match=message) as caught:
        read_rows(path)
    assert "secret" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_task_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.TOML"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_task(path).name == "mine"
    with pytest.raises(OffsiteError, match="not valid json"):
        parse_task("[" * 100_000, Path("a.json"))


def test_every_character_but_a_line_end_stays_in_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.CSV"
    path.write_text("a,b\none\u2028two\x0c,\N{GRINNING FACE}\n")
    (row,) = read_rows(path)
    assert row["a"] == "one\u2028two\x0c" and row["b"] == "\N{GRINNING FACE}"
    path = tmp_path / "b.JSONL"
    path.write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}\n')
    (row,) = read_rows(path)
    assert row["a"] == "\N{GRINNING FACE}" and row["b"] == r"\ud800"


def test_importing_the_tasks_loads_no_task() -> None:
    tree = ast.parse(Path(offsite.tasks.__file__).read_text())
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top == {"__future__", "pathlib", "typing", "offsite.errors"}
    assert not any(isinstance(node, ast.Import) for node in tree.body)
