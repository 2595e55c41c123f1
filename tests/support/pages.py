"""The pages of the commands in ``docs/commands``, and their list in ``mkdocs.yml``.

    python -m tests.support.pages

Run it when an option is changed on purpose; a test compares the pages with the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from offsite.cli import app

ROOT = Path(__file__).parents[2]
PAGES, SITE = ROOT / "docs" / "commands", ROOT / "mkdocs.yml"


def commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by the words that call it."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        words = f"{before}{name}"
        deeper = hasattr(command, "commands")
        found |= commands(command, f"{words} ") if deeper else {words: command}
    return found


COMMANDS = commands(typer.main.get_command(app))


def page_name(words: str) -> str:
    """The file of a command."""
    return f"{words.replace(' ', '-')}.md"


def page(words: str, command: Any) -> str:
    """What a command does, an example, and its options in a table."""
    example = (command.epilog or "").removeprefix("Example: ")
    lines = [f"# offsite {words}", "", command.help, "", "```sh", example, "```", ""]
    lines += ["| option | default | |", "|---|---|---|"]
    for option in command.params:
        names = "`" + "` `".join([*option.opts, *option.secondary_opts]) + "`"
        lines.append(f"| {names} | {default(option)} | {escape(option.help or '')} |")
    return "\n".join(lines) + "\n"


def default(option: Any) -> str:
    """The value of an option that is not given."""
    if option.required:
        return "required"
    if option.default is None or option.default is False or option.default in ([], ""):
        return ""
    return "on" if option.default is True else f"`{option.default}`"


def escape(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write a page for each command and remove those of commands that are gone."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in PAGES.glob("*.md"):
        file.unlink()
    for words, command in COMMANDS.items():
        (PAGES / page_name(words)).write_text(page(words, command), encoding="utf-8")
    before = SITE.read_text(encoding="utf-8").partition("  - Commands:\n")[0]
    SITE.write_text(before + nav(), encoding="utf-8")


def nav() -> str:
    """The last part of the site's navigation."""
    names = sorted(page_name(words) for words in COMMANDS)
    return "  - Commands:\n" + "".join(f"      - commands/{name}\n" for name in names)


if __name__ == "__main__":
    main()
