"""Groups of options: a command takes one dataclass, and a user types one option for each field."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from offsite.training.options import TrainOptions

Command = Callable[..., None]
PANELS: Mapping[type, str] = {TrainOptions: "Training"}


def grouped(leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """Replace each parameter of a command that is a dataclass by one option for each field.

    The command is called with the dataclass that the user's options make.

    Args:
        leave_out: fields without effect in this command; they keep their defaults.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        groups: dict[str, type[Any]] = {
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
        }
        options = {
            name: [p for p in parameters(group) if p.name not in leave_out]
            for name, group in groups.items()
        }

        @functools.wraps(command)
        def run(**values: Any) -> None:
            for name, group in groups.items():
                chosen = {option.name: values.pop(option.name) for option in options[name]}
                values[name] = group(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
                )
            command(**values)

        shown = [
            option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            for option in options.get(name, [parameter])
        ]
        run.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in shown}
        del run.__wrapped__
        return run

    return decorate


def parameters(group: type[Any]) -> list[inspect.Parameter]:
    """One keyword parameter for each field of a group: its name, type, default and help."""
    types, words = get_type_hints(group, include_extras=True), field_help(group)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=list(field.default) if isinstance(field.default, tuple) else field.default,
            annotation=option(field, types[field.name], words, PANELS.get(group)),
        )
        for field in fields(group)
    ]


def option(field: Field[Any], kind: Any, words: Mapping[str, str], panel: str | None) -> Any:
    """The annotation of a field as typer reads it; one that it has already is kept."""
    if get_origin(kind) is Annotated:
        return kind
    flag = [f"--{field.name.replace('_', '-')}"] if kind is bool else []
    return Annotated[
        list[str] if isinstance(field.default, tuple) else kind,
        typer.Option(*flag, help=words.get(field.name, ""), rich_help_panel=panel),
    ]


def field_help(group: type[Any]) -> dict[str, str]:
    """The words about each field in a docstring's ``Attributes``, as help for the command line."""
    _, _, attributes = (inspect.getdoc(group) or "").partition("Attributes:")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.M)
    plain = {name: re.sub(r"\s+", " ", words) for name, words in entries}
    return {
        name: re.sub(r"``(\w+)``", lambda m: f"--{m[1].replace('_', '-')}", words)
        for name, words in plain.items()
    }
