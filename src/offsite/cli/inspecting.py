"""Commands that only show: inspect, the lists, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from offsite.cli import options as o
from offsite.cli.output import emit


def inspect(
    path: Annotated[Path, typer.Argument(help="Offer, delta, record, or model folder.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="The offer or the full model of a delta, to show the tensors in their places."
        ),
    ] = None,
    json: o.Json = False,
) -> None:
    """Show what an offer, a delta, a record or a model holds."""
    from offsite.report.inspection import inspect_path

    data, lines = inspect_path(path, base)
    emit(data, json, lines)


def deltas(json: o.Json = False) -> None:
    """List the tuning methods, and when to choose each."""
    import dataclasses

    from rich.table import Table

    from offsite.deltas import ALIASES, METHODS, method_text
    from offsite.deltas.method import Method

    table = Table("--delta", "options", "merges", "when to choose it")
    result: dict[str, Any] = {}
    for kind, build in METHODS.items():
        method: Method = build()
        options = {field.name: field.default for field in dataclasses.fields(build)}
        result[kind] = {"options": options, "merges": method.merges, "when": method.when}
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        table.add_row(kind, shown, "yes" if method.merges else "no", method.when)
    same = Table("alias", "the same as")
    for name, meaning in ALIASES.items():
        same.add_row(name, method_text(meaning) if len(meaning) > 1 else meaning["kind"])
    note = "Several together, each at its own rate: --delta lora:rank=8+bitfit."
    emit({"deltas": result, "aliases": ALIASES}, json, [table, same, note])


def recipes(json: o.Json = False) -> None:
    """List the recipe presets and their steps."""
    import dataclasses

    from rich.table import Table

    from offsite.compress import STEPS
    from offsite.compress.presets import PRESETS

    presets = Table("--recipe", "what it makes, at any --keep or --budget")
    for name, preset in PRESETS.items():
        presets.add_row(name, preset.text)
    steps = Table('step ("kind")', "options, for a JSON file of steps")
    fields = {kind: [f.name for f in dataclasses.fields(step)] for kind, step in STEPS.items()}
    for kind, names in fields.items():
        steps.add_row(kind, ", ".join(names))
    result = {"presets": {n: p.text for n, p in PRESETS.items()}, "steps": fields}
    emit(result, json, [presets, steps])


def tasks(json: o.Json = False) -> None:
    """List the kinds of private data."""
    from offsite.tasks import task_names

    emit({"tasks": task_names()}, json, task_names())


def report(
    runs: Annotated[list[Path], typer.Argument(help="Lab folders, scores, offers, deltas.")],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the page if it exists.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Write one self-contained page from the results of the lab."""
    from rich.text import Text

    from offsite.report import write_report

    page = write_report(runs, out, title=title, overwrite=overwrite)
    emit({"report": str(page), "bytes": page.stat().st_size}, json, [Text(f"report: {page}")])
