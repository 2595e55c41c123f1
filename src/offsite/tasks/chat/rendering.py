"""Conversations as the text that the tokenizer's own chat template makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import shown
from offsite.tasks.chat.messages import is_learnt

Messages = Sequence[Mapping[str, Any]]


def learnt_spans(messages: Messages, processor: Any, where: str) -> tuple[str, list[range]]:
    """The text of a conversation, and which characters of it are learnt.

    The template is rendered with and without each turn of the assistant; what it adds is the
    answer, the end-of-turn mark included. Of a turn that opens the conversation only the content
    and what follows it are learnt.

    Raises:
        OffsiteError: no chat template, one that refuses these messages, rewrites earlier turns or
            leaves out a part of an answer.
    """
    text = render(messages, processor, where)
    spans = []
    for index, message in enumerate(messages):
        if not is_learnt(message):
            continue
        after = render(messages[: index + 1], processor, where)
        before = render(messages[:index], processor, where, answering=True) if index else ""
        if not text.startswith(before) or not text.startswith(after):
            raise OffsiteError(
                f"{where} cannot be marked up: the tokenizer's chat template changes earlier "
                "turns when later ones follow; split the conversation after its first answer."
            )
        content = message["content"].strip()
        start = len(before) if index else max(after.find(content), 0)
        if content not in after[start:]:
            raise OffsiteError(
                f"{where} would not be learnt whole: the tokenizer's chat template leaves out or "
                "changes a part of what the assistant says."
            )
        spans.append(range(start, len(after)))
    return text, spans


def render(messages: Messages, processor: Any, where: str, *, answering: bool = False) -> str:
    """The text the tokenizer's template makes of messages."""
    template = getattr(processor, "chat_template", None)
    if not template:
        raise OffsiteError(
            "The tokenizer has no chat template; use an instruction-tuned model, or give prompts "
            "and completions to the task 'text'."
        )
    if isinstance(template, Mapping) and "default" not in template:
        raise OffsiteError(
            f"The tokenizer has several chat templates ({shown(', '.join(template))}) and none of "
            "them is called 'default'; give the one to use that name."
        )
    try:
        return apply(messages, processor, answering)
    except Exception:  # templates raise what they like, and may quote the messages
        raise refusal(messages, processor, where) from None


def apply(messages: Messages, processor: Any, answering: bool) -> str:
    """The text of messages by the tokenizer's template, ended where an answer is to begin."""
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    return str(
        processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=answering)
    )


def refusal(messages: Messages, processor: Any, where: str) -> OffsiteError:
    """Why a template refuses messages, found by leaving the system's out."""
    rest = [message for message in messages if message["role"] != "system"]
    if rest and len(rest) < len(messages):
        try:
            apply(rest, processor, False)
        except Exception:  # it is not the system's message alone
            pass
        else:
            return OffsiteError(
                f"{where} has a system message, which the tokenizer's chat template does not take; "
                "put its text at the start of the first user message."
            )
    return OffsiteError(
        f"{where} is refused by the tokenizer's chat template; most templates want user and "
        "assistant to take turns, the user first."
    )
