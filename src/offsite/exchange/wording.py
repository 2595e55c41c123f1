"""The words in an offer that its reader can see: added tokens, chat template and labels.

A model computes the same without most of them, so its owner may leave them out. Numbers stay: the
ids of tokens, the size of the vocabulary and the number of labels. A special token that has a role
(such as end of text) is how texts begin, end and are padded, and an added token that is not special
is cut out of ordinary text; both change what is computed, so both stay.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from offsite.errors import OffsiteError
from offsite.model.kind import TEXT
from offsite.model.processor import read_processor

Part = Literal["added-tokens", "chat-template", "labels"]
PARTS: tuple[Part, ...] = get_args(Part)
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SHOWN = 8
DEFAULT = "default"  # of several chat templates, the one that an offer holds
CHAT = "chat"  # the task whose data passes through the chat template


@dataclass(frozen=True)
class Wording:
    """What of an offer is words.

    Attributes:
        added_tokens: tokens beyond the tokenizer's own vocabulary, by id.
        chat_template: characters of the chat template; 0 without one.
        labels: names of the classes of a classifier, where they are not transformers' own.
    """

    added_tokens: tuple[str, ...] = ()
    chat_template: int = 0
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, processor: Any, config: Any) -> Wording:
        """The words of a tokenizer (or None, or an image processor) and of a configuration."""
        added: Mapping[str, int] = getattr(processor, "get_added_vocab", dict)()
        template = getattr(processor, "chat_template", None) or ""
        sent = template.get(DEFAULT, "") if isinstance(template, Mapping) else template
        names = getattr(config, "id2label", None) or {}
        own = {index: name for index, name in names.items() if name != f"LABEL_{index}"}
        return cls(
            tuple(sorted(added, key=lambda token: added[token])),
            len(sent),
            tuple(map(str, own.values())),
        )

    def lines(self) -> Iterator[str]:
        """One phrase for each part that there is."""
        if self.added_tokens:
            yield f"{len(self.added_tokens)} added tokens ({few(self.added_tokens)})"
        if self.chat_template:
            yield f"a chat template of {self.chat_template:,} characters"
        if self.labels:
            yield f"{len(self.labels)} labels ({few(self.labels)})"


def unsent_templates(processor: Any) -> list[str]:
    """The names of the chat templates that an offer does not hold, of a tokenizer with several."""
    template = getattr(processor, "chat_template", None)
    return sorted({*template} - {DEFAULT}) if isinstance(template, Mapping) else []


def few(words: Collection[str]) -> str:
    """The first of some words, and that there are more."""
    first = ", ".join(list(words)[:SHOWN])
    return first if len(words) <= SHOWN else f"{first}, ..."


def parse_parts(names: Collection[str], task: str = TEXT.name) -> frozenset[Part]:
    """What to leave out of an offer, by name.

    Args:
        task: the name of the task that the offer is for.

    Raises:
        OffsiteError: an unknown name, or what the task needs.
    """
    for name in names:
        if name not in PARTS:
            raise OffsiteError(
                f"'{name}' cannot be left out of an offer; use {', '.join(PARTS[:-1])} or "
                f"{PARTS[-1]}."
            )
    if task == CHAT and (needed := sorted({"added-tokens", "chat-template"} & {*names})):
        raise OffsiteError(
            f"--leave-out {needed[0]} takes away the chat template, which --task chat needs; send "
            "it, or make the offer for another task."
        )
    return frozenset(part for part in PARTS if part in names)


def without_words(model: Any, processor: Any, parts: Collection[Part]) -> Any:
    """Take words out of the model of an offer and return its tokenizer without them.

    Raises:
        OffsiteError: see :func:`rename_tokens`.
    """
    if "labels" in parts:
        without_labels(model.config)
    return plain_tokenizer(processor, parts)


def without_labels(config: Any) -> None:
    """Give the classes of a configuration the names that transformers gives by itself."""
    config.id2label = {index: f"LABEL_{index}" for index in range(config.num_labels)}
    config.label2id = {name: index for index, name in config.id2label.items()}


def plain_tokenizer(processor: Any, parts: Collection[Part]) -> Any:
    """A tokenizer without its chat template, or without the names of its added special tokens.

    A chat template is made of such tokens, so it goes with them. A token gets the name
    ``<|added_ID|>`` and keeps its id.

    Raises:
        OffsiteError: the tokenizer has no ``tokenizer.json`` in which they could be renamed.
    """
    if not hasattr(processor, "get_vocab") or not {"added-tokens", "chat-template"} & {*parts}:
        return processor
    with tempfile.TemporaryDirectory(prefix="offsite-") as private:
        folder = Path(private)
        processor.save_pretrained(folder)
        changed = read_processor(folder, TEXT)
        changed.chat_template = None
        if "added-tokens" in parts:
            changed.save_pretrained(folder)
            (folder / "chat_template.jinja").unlink(missing_ok=True)
            rename_tokens(folder, processor)
            changed = read_processor(folder, TEXT)
    return changed


def rename_tokens(folder: Path, processor: Any) -> None:
    """Rename the special tokens without a role in the files of a tokenizer.

    Raises:
        OffsiteError: there is no ``tokenizer.json``.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise OffsiteError(
            "The added tokens cannot be left out, because the tokenizer has no tokenizer.json; "
            "convert the tokenizer, or do not use '--leave-out added-tokens'."
        )
    roles = {getattr(processor, f"{role}_token", None) for role in ROLES}
    names = {
        token["content"]: f"<|added_{token['id']}|>"
        for token in json.loads(path.read_text("utf-8"))["added_tokens"]
        if token["special"] and token["content"] not in roles
    }
    for file in folder.glob("*.json"):
        content = renamed(json.loads(file.read_text("utf-8")), names)
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A JSON value in which every word among ``names``, keys too, has its other name."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value
