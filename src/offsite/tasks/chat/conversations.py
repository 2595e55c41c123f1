"""Instruction data: lines of ``{"messages": [{"role", "content"}, ...]}``, through the tokenizer's
own chat template; only what the assistant says is trained on and scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE
from offsite.tasks.rows import Row, read_rows
from offsite.tasks.text.causal import CausalText, pack_ids, restarts, window

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Chat(CausalText):
    """Conversations; loss and perplexity of the assistant's turns.

    A conversation longer than ``max_length`` tokens loses its end.
    """

    @property
    def name(self) -> str:
        """``"chat"``."""
        return "chat"

    def read(self, source: str | Path) -> list[tuple[list[dict[str, str]], str]]:
        """The conversations of a file, each with its place.

        Raises:
            OffsiteError: a line without messages, an unknown role, or no turn of the assistant.
        """
        return [(read_messages(row), row.where) for row in read_rows(source)]

    def check(self, source: str | Path, processor: Any = None, config: Any = None) -> int:
        """Read a data file without any model and return the number of its conversations."""
        found = self.read(source)
        if processor is not None:
            length = window(self.max_length, config)
            for messages, where in found:
                encode_chat(messages, processor, length, where)
        return len(found)

    def load(
        self, source: str | Path, processor: Any, model: Any, *, train: bool = False
    ) -> Dataset[Any]:
        """Read, encode and pack conversations; see :class:`~offsite.tasks.task.Task`."""
        if processor is None:
            raise OffsiteError("The model has no tokenizer, so chats cannot be read for it.")
        length = window(self.max_length, getattr(model, "config", None))
        rows = [encode_chat(m, processor, length, where) for m, where in self.read(source)]
        return pack_ids(rows, length, together=self.packed and restarts(model))  # type: ignore[return-value]


def read_messages(row: Row) -> list[dict[str, str]]:
    """The messages of one line, checked."""
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise OffsiteError(f'{row.where} needs a non-empty list under "messages".')
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise OffsiteError(f'{row.where} needs a "role" of {", ".join(ROLES)} in each message.')
        if not isinstance(message.get("content"), str):
            raise OffsiteError(f'{row.where} needs text under "content" in each message.')
    if not any(message["role"] == "assistant" for message in messages):
        raise OffsiteError(f"{row.where} has no message of the assistant to learn from.")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def encode_chat(
    messages: Sequence[Mapping[str, str]], processor: Any, length: int, where: str
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels that leave out all but the assistant's turns.

    The template is rendered with and without each of these turns; what it adds is the answer,
    the end-of-turn mark included.

    Raises:
        OffsiteError: no chat template, one that refuses these messages or rewrites earlier turns,
            or no answer within ``length`` tokens.
    """
    text = render_chat(messages, processor, where)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render_chat(messages[:index], processor, where, answering=True)
            after = render_chat(messages[: index + 1], processor, where)
            if not text.startswith(before) or not text.startswith(after):
                raise OffsiteError(
                    f"{where} cannot be marked up: the tokenizer's chat template changes earlier "
                    "turns when later ones follow; split the conversation after its first answer."
                )
            spans.append((len(before), len(after)))
    if not getattr(processor, "is_fast", False):
        raise OffsiteError(
            "Chats need a tokenizer that tells where each token stands in the text (a fast one)."
        )
    encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])[:length]
    labels = [
        token if any(start < b and a < stop for start, stop in spans) else IGNORE
        for token, (a, b) in zip(ids, encoded["offset_mapping"][:length], strict=True)
    ]
    if all(label == IGNORE for label in labels[1:]):
        raise OffsiteError(
            f"{where} has nothing of the assistant within its first {length} tokens; raise "
            "--max-length or shorten it."
        )
    return ids, [IGNORE, *labels[1:]]


def render_chat(
    messages: Sequence[Mapping[str, str]], processor: Any, where: str, *, answering: bool = False
) -> str:
    """The text the tokenizer's template makes of messages."""
    if not getattr(processor, "chat_template", None):
        raise OffsiteError(
            "The tokenizer has no chat template; use an instruction-tuned model, or give prompts "
            "and completions to the task 'text'."
        )
    try:
        return str(
            processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answering
            )
        )
    except Exception:  # templates raise what they like, and may quote the messages
        raise OffsiteError(
            f"{where} is refused by the tokenizer's chat template; check the order of the roles."
        ) from None
