"""A task file (TOML or JSON): where the data is, the prompt, the choices, the answer.

The tasks that come with the package are such files too, in ``builtin/``; to add one, add a file.
"""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from offsite.errors import OffsiteError
from offsite.tasks.questions.template import parse_template

Template = Annotated[str, Field(min_length=1, max_length=20_000)]
METRICS = {"multiple-choice": ("accuracy", "accuracy_norm"), "open": ("exact_match",)}


class TaskFile(BaseModel):
    """What a task file says.

    Attributes:
        name: how the task is called in tables.
        kind: ``"multiple-choice"`` (also classification as text) or ``"open"`` questions.
        prompt: template of what the model reads.
        choices: the column that lists the choices, or the choices themselves as templates.
        answer: the column with the answer: for multiple choice the 0-based number, one of
            ``labels``, or the text of a choice; for open questions a text or a list of accepted
            texts.
        labels: names of the choices, in their order, as the answer column writes them.
        separator: the text between prompt and answer.
        metric: ``"accuracy"``, ``"accuracy_norm"`` (log-likelihood per character) or
            ``"exact_match"``; None for the first that the kind has.
        columns: column names of TSV or CSV data without a header line.
        train, test: data paths, relative to the task file.
        new_tokens: longest answer generated for an open question, in tokens.
        source: where the prompt comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,63}$")]
    kind: Literal["multiple-choice", "open"]
    prompt: Template
    answer: str
    choices: str | tuple[Template, ...] | None = None
    labels: tuple[str, ...] = ()
    separator: str = " "
    metric: Literal["accuracy", "accuracy_norm", "exact_match"] | None = None
    columns: tuple[str, ...] = ()
    train: str | None = None
    test: str | None = None
    new_tokens: Annotated[int, Field(ge=1, le=1024)] = 16
    source: str = ""

    @field_validator("prompt")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_template(value)
        return value

    @field_validator("choices")
    @classmethod
    def _choosable(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple):
            if len(value) < 2:
                raise OffsiteError("at least two choices are needed")
            for template in value:
                parse_template(template)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TaskFile:
        if (self.choices is not None) != (self.kind == "multiple-choice"):
            raise OffsiteError("a multiple-choice task has 'choices', an open one has none")
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise OffsiteError(f"the metric of this kind is {' or '.join(METRICS[self.kind])}")
        if isinstance(self.choices, tuple) and len(self.labels) not in (0, len(self.choices)):
            raise OffsiteError("there must be as many 'labels' as 'choices'")
        return self


def builtin_names() -> tuple[str, ...]:
    """Names of the task files inside the package."""
    folder = resources.files("offsite.tasks") / "builtin"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir()))


def read_task_file(name: str | Path) -> tuple[TaskFile, Path | None]:
    """Read a task file, or the built-in one of that name.

    Returns:
        What it says, and the folder its data paths are relative to (None for a built-in one).

    Raises:
        OffsiteError: neither, or a file that is not as described; file and line are named.
    """
    if str(name) in builtin_names():
        text = (resources.files("offsite.tasks") / "builtin" / f"{name}.toml").read_text("utf-8")
        return parse_task(text, Path(f"{name}.toml")), None
    path = Path(name)
    if path.suffix.lower() not in (".toml", ".json"):
        raise OffsiteError(
            f"There is no task '{name}'; use text, chat, image-classification, "
            f"{', '.join(builtin_names())}, or give your own task file with --task FILE "
            "(.toml or .json)."
        )
    if not path.is_file():
        raise OffsiteError(f"There is no task file '{path}'; check the path.")
    try:
        return parse_task(path.read_text(encoding="utf-8-sig"), path), path.parent
    except UnicodeDecodeError:
        raise OffsiteError(f"The task file '{path}' is not UTF-8 text.") from None


def parse_task(text: str, path: Path) -> TaskFile:
    """Check the text of a task file; ``path`` is for messages and tells TOML from JSON."""
    kind = path.suffix.lower()
    try:
        data: Any = tomllib.loads(text) if kind == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.search(r"line (\d+)", str(error))
        where = f"Line {found[1]} of the" if found else "The"
        raise OffsiteError(f"{where} task file '{path}' is not valid {kind[1:]}.") from None
    try:
        return TaskFile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "extra_forbidden":
            reason = f"no such key; there are {', '.join(TaskFile.model_fields)}"
        what = f"'{key}': {reason}" if key else reason
        raise OffsiteError(
            f"{_where(text, key)} task file '{path}' cannot be used: {what}."
        ) from None


def _where(text: str, key: str) -> str:
    pattern = re.compile(rf'^[\s{{,]*"?{re.escape(key)}"?\s*[=:]')
    numbers = (n for n, line in enumerate(text.split("\n"), 1) if key and pattern.match(line))
    line = next(numbers, None)
    return "The" if line is None else f"Line {line} of the"
