"""What is learnt is what the data says: other names, doubled keys, missing values, two forms."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offsite.errors import OffsiteError
from offsite.tasks import load_task
from offsite.tasks.chat.messages import read_messages
from offsite.tasks.rows import Row, read_rows
from offsite.tasks.text.documents import Document, read_documents
from tests.support import Run

PAIR = {"prompt": "secret", "completion": " a cat"}


@pytest.mark.parametrize("ending", ["jsonl", "jsonlines", "ndjson", "jl", "JSONL", "json"])
def test_json_lines_have_many_names(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text(f"{json.dumps(PAIR)}\n\n{json.dumps(PAIR)}\n")
    where = [f"Line {line} of '{path}'" for line in (1, 3)]
    assert read_documents(path) == [Document(" a cat", place, "secret") for place in where]
    if ending != "json":
        assert [row["prompt"] for row in read_rows(path)] == ["secret"] * 2
    (tmp_path / "list.json").write_text(json.dumps([PAIR, PAIR], indent=1))
    assert len(read_documents(tmp_path / "list.json")) == 2


@pytest.mark.parametrize("content", [json.dumps(PAIR), json.dumps([PAIR]), '{"messages": []}\n{}'])
def test_json_under_the_name_of_a_text_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(OffsiteError, match=r"holds JSON.*rename it to .jsonl") as caught:
        read_documents(tmp_path / "a.txt")
    assert "secret" not in str(caught.value)
    (tmp_path / "b.txt").write_text('{"other": "JSON may be what is learnt"}')
    assert len(read_documents(tmp_path / "b.txt")) == 1


LINES = {
    '{"text": "secret", "text": "b"}': "has the key 'text' twice",
    '{"prompt": NaN, "completion": "secret"}': "NaN or an infinite number under 'prompt'",
    '{"prompt": "x", "completion": "secret", "more": {"score": -Infinity}}': "under 'score'",
    '{"prompt": "x", "completion": "secret", "more": [1e999]}': "under 'more'",
    '{"text": "secret", "prompt": "x", "completion": "y"}': 'has a "text" and also a "prompt"',
    '{"text": "secret", "completion": "y"}': 'has a "text" and also a "prompt"',
    '{"prompt": "x", "completion": "secret", "weight": 1}': 'has the key "weight"',
    '{"messages": [{"role": "user", "content": "secret"}]}': "use the task 'chat'",
    '{"completion": "secret"}': 'needs a "text", or a "prompt"',
    '{"instruction": "secret", "output": "y"}': "it has the keys 'instruction', 'output'",
    '{"prompt": "x", "completion": "secret", "rejected": "z"}': 'has the key "rejected"',
    '{"prompt": "x", "completion": "secret", "label": false}': "a task file that names it",
    '{"prompt": "x", "completion": "secret", "suffix": "z"}': 'has the key "suffix"',
    '{"prompt": "x", "completion": "y", "context": "secret"}': 'has the key "context"',
    '{"text": "x", "response": "secret"}': 'has the key "response"',
    '{"text": "secret", "loss_mask": [0, 1]}': 'has the key "loss_mask"',
    '{"prompt": "secret", "completion": " \\n"}': "as non-empty strings",
    '{"prompt": "x", "completion": "secret"},': "more text follows the end",
    '{"prompt": "x", "completion": "secret"}{"prompt": "x"}': "more text follows the end",
    '{"prompt": "secret", "completion": "nan"}': "has 'nan' in its column 'completion'",
    '{"prompt": "secret",': "the value that begins there does not end there",
    '{"prompt": "x", "completion": "secret': "the value that begins there does not end there",
    '{"prompt": "x", "completion": secret}': "is not valid JSON",
    '{"prompt": "secret", "id": ' + "9" * 5000 + "}": "a number has too many digits",
    '{"prompt": "secret", "id": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested too deeply",
}

FILES = {
    "a.pdf": (b"%PDF-1.4 secret", "is a PDF document"),
    "a.docx": (b"PK\x03\x04secret", r"is a zip archive \(.docx"),
    "a.jsonl.gz": (gzip.compress(b"secret"), "is a gzip archive"),
    "a.arrow": (b"ARROW1\0\0secret", "is an Arrow table"),
    "a.jsonl": ('{"text": "secret"}'.encode("utf-16"), "is text in UTF-16"),
    "a.txt": (b"one\ntwo \0secret", r"Line 2 of .* holds a NUL character"),
    "b.txt": ("secret é".encode("latin-1"), "is not UTF-8 text"),
    "c.txt": (b'{"instruction": "secret", "output": "x"}', "holds JSON"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_text_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OffsiteError, match=message) as caught:
        read_documents(tmp_path / name)
    assert "secret" not in str(caught.value)


def test_a_folder_of_texts_is_not_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OffsiteError, match=r"is a folder; .* read from one file"):
        read_documents(tmp_path)


@pytest.mark.parametrize("line", LINES)
def test_lines_that_would_be_read_as_something_else(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n{line}\n")
    with pytest.raises(OffsiteError, match=r"^Line 2 of ") as caught:
        read_documents(path)
    assert LINES[line] in str(caught.value) and "secret" not in str(caught.value)


TABLES = {
    "r;y\nsecret;yes\n": "separated by ';', it seems",
    "r\ty\nsecret\tyes\n": "separated by tabs, it seems",
    "r, y\nsecret,yes\n": r"Line 2 .* has no column 'y' \(one differs from it by spaces",
    "R,y\nsecret,yes\n": r"Line 2 .* has no column 'r' \(one differs from it by .* capitals",
    "secret,yes\nother,no\n": "Line 2 .* has no column 'y'; add it",
    "r,y\nnan,yes\n": "Line 2 .* has 'nan' in its column 'r'",
    "r,y\nsecret,NaN\n": "Line 2 .* has 'NaN' in its column 'y'",
    "r,y\n#N/A,yes\n": "Line 2 .* has '#N/A' in its column 'r'",
    "r,y\nsecret,\\N\n": r"Line 2 .* has '\\N' in its column 'y'",
    "r,y\nsecret,A\n": "or the text of a choice; the task file may name others with 'labels'",
    "r,y\n": "is empty: it holds no example",
}


@pytest.mark.parametrize("content", TABLES)
def test_tables_as_other_tools_write_them(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        'name="t"\nkind="multiple-choice"\nprompt="{r}"\nchoices=["no","yes"]\nanswer="y"\n'
    )
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(OffsiteError, match=TABLES[content]) as caught:
        load_task(tmp_path / "t.toml").read(tmp_path / "a.csv")
    assert "secret" not in str(caught.value)


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    for name, line in (("a.csv", "report,label,label"), ("a.tsv", "label\tx\tlabel")):
        (tmp_path / name).write_text(f"{line}\n1,2,3\n")
        with pytest.raises(OffsiteError, match=r"Line 1 of .* names the column 'label' twice"):
            read_rows(tmp_path / name)


ANSWERS: list[tuple[list[Any], list[str], Any]] = [
    ([1, 2], ["1", "2"], [0, 1]),
    ([1.0, 2.0], ["1", "2"], [0, 1]),
    ([False, True], ["false", "true"], [0, 1]),
    ([0.0, 1.0], [], [0, 1]),
    (["0.0", "1.0"], [], [0, 1]),
    (["yes", "no"], [], [1, 0]),
    ([0, 2], [], "Line 2 .* unknown label .* 0 to 1"),
    ([0, 0.5], [], "Line 2 .* unknown label"),
    ([0, True], [], "Line 2 .* unknown label"),
    ([0, None], [], "Line 2 .* unknown label"),
    (["false", "no"], ["false", "true"], "Line 2 .* one of false, true"),
]


@pytest.mark.parametrize(("values", "labels", "expected"), ANSWERS)
def test_labels_as_data_writes_them(
    values: list[Any], labels: list[str], expected: Any, tmp_path: Path
) -> None:
    said = f"labels={json.dumps(labels)}\n" if labels else ""
    task = tmp_path / "t.toml"
    task.write_text(
        f'name="t"\nkind="multiple-choice"\nprompt="{{r}}"\nchoices=["no","yes"]\nanswer="y"\n{said}'
    )
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({"r": "river", "y": value}) + "\n" for value in values))
    if isinstance(expected, str):
        with pytest.raises(OffsiteError, match=expected):
            load_task(task).read(data)
    else:
        assert [question.answer for question in load_task(task).read(data)] == expected


def test_the_text_of_one_choice_and_the_number_of_another_is_ambiguous(tmp_path: Path) -> None:
    said = (
        'name="t"\nkind="multiple-choice"\nprompt="{r}"\nchoices=["{a}","{b}","{c}"]\nanswer="y"\n'
    )
    (tmp_path / "t.toml").write_text(said)
    data = tmp_path / "a.csv"
    data.write_text("r,a,b,c,y\nsacks,2,1,0,0\n")
    with pytest.raises(OffsiteError, match=r"Line 2 .* ambiguous label in its column 'y'"):
        load_task(tmp_path / "t.toml").read(data)
    (tmp_path / "t.toml").write_text(said + 'labels=["0","1","2"]\n')
    assert load_task(tmp_path / "t.toml").read(data)[0].answer == 0
    data.write_text("r,a,b,c,y\nsacks,2,1,0,1\n")  # the text and the number of the same choice
    assert load_task(tmp_path / "t.toml").read(data)[0].answer == 1


def talk(**more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "secret"}, {"role": "assistant", "content": "a", **more}]


CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"messages": talk(), "tools": [{"name": "rain"}]}, "'tools' besides its messages"),
    "calls": ({"messages": talk(tool_calls=[{}])}, "'tool_calls' in a message; calls of tools"),
    "role": ({"messages": [*talk(), {"role": "tool", "content": "x"}]}, "'tool' as the role"),
    "thinking": ({"messages": talk(reasoning_content="x")}, "'reasoning_content' in a message"),
    "name": ({"messages": talk(name="x")}, "'name' in a message; that key is not used here"),
    "half": ({"messages": talk(weight=0.5)}, '"weight" that is not 0 or 1'),
    "none": ({"messages": talk(weight=0)}, "no message of the assistant to learn from"),
    "parts": ({"messages": talk(content=["x"])}, "a list of parts, so join their texts"),
    "names": ({"messages": [{"role": "gpt", "content": "secret"}]}, "write 'assistant' for 'gpt'"),
    "preference": ({"messages": talk(), "rejected": talk()}, "'rejected' besides its messages"),
    "option": ({"messages": talk(), "enable_thinking": False}, "'enable_thinking' beside"),
    "choice": ({"messages": talk(), "tool_choice": "auto"}, "calls of tools are not learnt"),
    "sharegpt": ({"conversations": []}, 'has no "messages" (it has "conversations"'),
}


@pytest.mark.parametrize("case", CHATS)
def test_what_a_chat_says_is_used_or_refused(case: str) -> None:
    line, message = CHATS[case]
    with pytest.raises(OffsiteError, match=r"^Line 7 ") as caught:
        read_messages(Row(line, "Line 7"))
    assert message in str(caught.value) and "secret" not in str(caught.value)
    empty = {"messages": talk(tool_calls=None, weight=1), "tools": [], "id": 3}
    assert read_messages(Row(empty, "Line 7"))[1] == {**talk(weight=1)[1]}


def test_one_tune_opens_the_private_file_once(
    run: Run, model_folder: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    assert run("offer", model_folder("llama"), "--out", tmp_path / "o", "--keep", 1)[0] == 0
    opened: list[str] = []
    watching = [True]

    def look(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and Path(str(args[0])).name == text_file.name:
            opened.append(str(args[0]))

    sys.addaudithook(look)  # it cannot be removed, only switched off
    tune = ("tune", tmp_path / "o", "--data", text_file, "--out", tmp_path / "d", "--steps", 1)
    status, _, err = run(*tune, "--max-length", 32)
    watching.clear()
    assert status == 0, err
    assert len(opened) == 2  # once to read and once to hash


def test_a_pipe_is_called_a_pipe(tmp_path: Path) -> None:
    """It exists, so it must not be called missing; ``<(zcat a.gz)`` of a shell is one."""
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(OffsiteError, match=r"is a pipe or a device.*save it as a file"):
        read_documents(tmp_path / "a.txt")
    with pytest.raises(OffsiteError, match="There is no data file"):
        read_documents(tmp_path / "b.txt")
