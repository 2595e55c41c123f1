"""The documents: the site builds without a warning, and all code in it and in the README runs."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from offsite.tasks.questions.file import TaskFile
from tests.support import Run
from tests.support.models import TEXT, language_model

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
STORIES = [ROOT / "README.md", *(DOCS / "tutorials").glob("*.md"), DOCS / "extend.md"]
NEEDS_MORE = ("demo", "delta import")  # minutes, and an adapter of other tools: tests of their own


def blocks(page: Path, language: str) -> list[str]:
    """The code of one language on a page, in order."""
    return [code for name, code in FENCE.findall(page.read_text("utf-8")) if name == language]


def commands(page: Path) -> list[list[str]]:
    """The words of every offsite command on a page, cut short to two steps on small rows."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("offsite ")]
    return [shorter(found[1:]) for found in words if not " ".join(found[1:]).startswith(NEEDS_MORE)]


def shorter(words: list[str]) -> list[str]:
    """The same command with two steps."""
    if "--steps" in words:
        words[words.index("--steps") + 1] = "2"
    elif words[0] == "tune":
        words += ["--steps", "2"]
    if "--try" in words:
        return [*words, "--try-steps", "2", "--max-length", "32"]
    return words + (["--max-length", "32"] if words[0] in ("tune", "lab", "sweep") else [])


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the documents name: a model of 16 blocks, and texts."""
    for name in ("model", "smollm2"):
        language_model("llama", num_hidden_layers=16).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for name in ("private", "public", "public-test", "train", "test"):
        (tmp_path / f"{name}.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(run: Run) -> None:
    """What the other party did before a tutorial begins."""
    words = ("--adapter", "ends:2,2", "--keep", 8)
    assert run("offer", "model", "--out", "offer", *words)[0] == 0


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, run: Run, folder: Path) -> None:
    if page.stem == "tuner":
        offered(run)
    for words in commands(page):
        if words[:2] == ["inspect", "delta/"]:  # the data owner's part of the owner's tutorial
            tune = ("tune", "offer", "--data", "private.txt", "--steps", 2, "--max-length", 32)
            assert run(*tune, "--out", "delta")[0] == 0
        if words[0] == "sweep":
            pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
        status, _, err = run(*words)
        frontier = words[0] == "sweep" and "There is no frontier" in err  # two steps gain nothing
        assert status == 0 or frontier, (words, err)


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    for number, code in enumerate(blocks(page, "python")):
        script = folder / f"{page.stem}{number}.py"
        script.write_text(code)
        runpy.run_path(str(script))


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_the_task_files_of_a_page_are_read(page: Path) -> None:
    for code in blocks(page, "toml"):
        assert TaskFile.model_validate(tomllib.loads(code)).kind in ("open", "multiple-choice")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build", reason="the extra 'docs' is not installed")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    build.build(config)
    for page in DOCS.rglob("*.md"):
        made = page.relative_to(DOCS).with_suffix("")
        place = made.parent if made.name == "index" else made
        assert (tmp_path / "site" / place / "index.html").is_file()


def test_the_command_that_lays_out_the_benchmarks_runs() -> None:
    """A library, opacus, has a package `benchmarks` too; in the checkout, ours runs."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "build/bench" in result.stdout


def test_models_that_others_pretrained_are_linked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.prepare import link_models

    monkeypatch.chdir(tmp_path)
    for name in ("models/one", "models/none"):
        Path(name).mkdir(parents=True)
    Path("models/one/config.json").write_text("{}")
    link = Path("build/bench/one")
    link_models(Path("models"))
    assert link.resolve() == tmp_path / "models" / "one"
    assert not Path("build/bench/none").exists()
    Path("models").rename("moved")
    link_models(Path("moved"))  # the link points nowhere now
    assert link.resolve() == tmp_path / "moved" / "one"
    link_models(Path("moved"))
    assert (link / "config.json").read_text() == "{}"
