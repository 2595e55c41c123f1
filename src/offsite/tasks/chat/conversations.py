"""Instruction data: lines of ``{"messages": [{"role", "content"}, ...]}``.

They pass through the tokenizer's own chat template; only what the assistant says is trained on and
scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offsite.errors import OffsiteError
from offsite.model.replay import IGNORE
from offsite.tasks.chat.messages import read_messages
from offsite.tasks.chat.rendering import Messages, learnt_spans
from offsite.tasks.rows import read_rows
from offsite.tasks.task import HarnessForm, no_harness
from offsite.tasks.text.causal import CausalText, Prepared, check_processor
from offsite.tasks.text.packing import Labelled, window


@dataclass(frozen=True)
class Chat(CausalText):
    """Conversations; loss and perplexity of the assistant's turns.

    A conversation longer than ``max_length`` tokens loses its end. A turn with ``"weight": 0`` is
    read and not learnt. The chat template alone says which tokens begin and end a conversation.
    """

    @property
    def name(self) -> str:
        """``"chat"``."""
        return "chat"

    def read(self, source: str | Path, *, train: bool = False) -> list[Any]:
        """The conversations of a file: the messages of each, and its place.

        Raises:
            OffsiteError: see :func:`~offsite.tasks.chat.messages.read_messages`.
        """
        return [(read_messages(row), row.where) for row in read_rows(source)]

    def prepare(self, documents: Sequence[Any], processor: Any, config: Any) -> Prepared:
        """Token ids of conversations; see :class:`~offsite.tasks.task.Task`."""
        check_processor(processor)
        length = window(self.max_length, config)
        rows = [encode_chat(messages, processor, length, where) for messages, where in documents]
        return self.prepared(rows, processor, config)

    def harness(self, documents: Sequence[Any]) -> HarnessForm:
        """Always refused; see :class:`~offsite.tasks.task.Task`."""
        raise no_harness(self.name)


def encode_chat(messages: Messages, processor: Any, length: int, where: str) -> Labelled:
    """Token ids of a conversation, and labels that leave out all but the assistant's turns.

    Args:
        messages: as :func:`~offsite.tasks.chat.messages.read_messages` returns them.

    Raises:
        OffsiteError: see :func:`~offsite.tasks.chat.rendering.learnt_spans`; or no answer within
            ``length`` tokens.
    """
    text, spans = learnt_spans(messages, processor, where)
    if not getattr(processor, "is_fast", False):
        raise OffsiteError(
            "Chats need a tokenizer that tells where each token stands in the text; use a model "
            "with a tokenizer.json."
        )
    encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])[:length]
    labels = [
        token if any(start < span.stop and span.start < stop for span in spans) else IGNORE
        for token, (start, stop) in zip(ids, encoded["offset_mapping"][:length], strict=True)
    ]
    if all(label == IGNORE for label in labels[1:]):
        raise OffsiteError(
            f"{where} has no text of the assistant in its first {length} tokens; raise "
            "--max-length or shorten the conversation."
        )
    return ids, [IGNORE, *labels[1:]]
