"""Show a result as one JSON object or as lines for people, and notes while computing."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from offsite.training.processes import main_process

if TYPE_CHECKING:
    from rich.text import Text

    from offsite.tasks.task import Evaluation

Lines = list[Any]  # strings, and what rich draws


def emit(result: Mapping[str, Any], as_json: bool, lines: Iterable[Any]) -> None:
    """Show a result: one JSON object, or lines and tables for people.

    In JSON a number that is not finite is null. Of several processes only the main one speaks.
    """
    if not main_process():
        return
    if as_json:
        text = json.dumps(result, default=plain)
        sys.stdout.write(json.dumps(json.loads(text, parse_constant=lambda _: None)) + "\n")
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    console = Console(soft_wrap=True, width=width, markup=False, emoji=False)
    for line in lines:
        console.print(line, highlight=False)


def headed(name: object, rest: str) -> Text:
    """A line that begins with a name in bold. Brackets are never markup."""
    from rich.text import Text

    return Text.assemble((str(name), "bold"), f"  {rest}")


def warning(text: str) -> Text:
    """A line that warns, below a result."""
    from rich.text import Text

    return Text.assemble("  ", ("warning", "bold"), f"      {text}")


def command() -> str:
    """The command that runs, as it can be typed again."""
    return f"offsite {shlex.join(sys.argv[1:])}"


def describe(evaluation: Evaluation) -> str:
    """An evaluation in a few words: the metric, its standard error, the others."""
    around = "" if evaluation.stderr is None else f" ± {evaluation.stderr:.4f}"
    extra = ", ".join(
        f"{key} {value:.4g}"
        for key, value in evaluation.extra.items()
        if key != evaluation.metric and not key.endswith("_stderr")
    )
    shown = f"{evaluation.metric} {evaluation.value:.4f}{around}"
    return shown + (f" ({extra})" if extra else "")


def note(text: str) -> None:
    """A word on standard error while a command works."""
    print(text, file=sys.stderr)


def plain(value: Any) -> Any:
    """JSON for paths, tuples and pydantic models."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, (tuple, set, frozenset)) else str(value)
