"""What ``--help`` says: frozen for every command, with an example, and fast."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

import pytest

from offsite import __version__
from tests.support import Run
from tests.support.pages import COMMANDS, PAGES, page, page_name


@pytest.mark.parametrize("words", COMMANDS)
def test_help_is_what_its_page_says(words: str) -> None:
    """To change it on purpose, run ``python -m tests.support.pages``."""
    assert page(words, COMMANDS[words]) == (PAGES / page_name(words)).read_text(encoding="utf-8")


def test_every_page_has_its_command() -> None:
    assert {file.name for file in PAGES.iterdir()} == {page_name(words) for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_an_example_with_options_that_exist(words: str) -> None:
    command = COMMANDS[words]
    example = command.epilog.removeprefix("Example: ")
    assert example.startswith(f"offsite {words}")
    given = {word for word in shlex.split(example) if word.startswith("--")}
    known = {name for option in command.params for name in option.opts}
    required = {option.opts[0] for option in command.params if option.required}
    assert given <= known
    assert {name for name in required if name.startswith("--")} <= given


def test_the_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"offsite {__version__}\n")


def test_help_loads_nothing_heavy_and_is_fast() -> None:
    code = (
        "import sys, time, offsite.cli as c; sys.argv[1:] = ['--help']\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()\n"
        "assert time.process_time() < 1.5\n"
    )
    start = time.process_time()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.process_time() - start < 1


def test_commands_start_where_python_leaves_docstrings_out() -> None:
    """``PYTHONOPTIMIZE=2`` takes away the words that help is made of, and nothing else."""
    command = [sys.executable, "-OO", "-m", "offsite", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"offsite {__version__}\n"), done.stderr
