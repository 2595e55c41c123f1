"""Every field of ``TrainOptions`` as an option of a command, said once: by its own docstring."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from offsite.training.options import TrainOptions, field_help

PANEL = "Training"


def training_options(
    leave_out: Collection[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter ``training`` of a command by one option for each field.

    The command is called with the ``TrainOptions`` that the user chose.

    Args:
        leave_out: fields without effect in this command; they keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [p for p in parameters() if p.name not in leave_out]
        signature = inspect.signature(command, eval_str=True)
        before = list(signature.parameters.values())
        place = next(i for i, p in enumerate(before) if p.name == "training")

        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> None:
            chosen = {option.name: values.pop(option.name) for option in options}
            chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
            command(*args, training=TrainOptions(**chosen), **values)

        shown = [*before[:place], *options, *before[place + 1 :]]
        run.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in shown}
        del run.__wrapped__
        return run

    return decorate


def parameters() -> list[inspect.Parameter]:
    """One keyword parameter for each field: its name, type, default and help."""
    types, words = get_type_hints(TrainOptions), field_help()
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=list(field.default) if isinstance(field.default, tuple) else field.default,
            annotation=Annotated[
                list[str] if isinstance(field.default, tuple) else types[field.name],
                typer.Option(
                    *([flag(field.name)] if types[field.name] is bool else []),
                    help=words[field.name],
                    rich_help_panel=PANEL,
                ),
            ],
        )
        for field in fields(TrainOptions)
    ]


def flag(name: str) -> str:
    """The spelling of an option without a value."""
    return f"--{name.replace('_', '-')}"
