"""Conversations rendered as text by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
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
        OffsiteError: no chat template, one that refuses these messages, rewrites earlier turns,
            begins an answer otherwise than this one, or leaves out a part of a message.
    """
    text = render(messages, processor, where)
    check_whole(messages, text, where)
    spans = []
    for index, message in enumerate(messages):
        if not is_learnt(message):
            continue
        after = render(messages[: index + 1], processor, where)
        before = render(messages[:index], processor, where, answering=True) if index else ""
        if not text.startswith(before) or not text.startswith(after):
            if text.startswith(after):
                raise other_beginning(before, text, where)
            raise OffsiteError(
                f"{where} cannot be marked up: the tokenizer's chat template changes earlier "
                "turns when later ones follow; split the conversation after its first answer."
            )
        content = message["content"].strip()
        start = len(before) if index else max(after.find(content), 0)
        if content not in after[start:]:
            start = after.rfind(content)  # it holds what the template begins every answer with
            if start < len(render(messages[:index], processor, where) if index else ""):
                raise OffsiteError(
                    f"{where} would not be learnt whole: the tokenizer's chat template leaves out "
                    "or changes a part of what the assistant says; remove the conversation, or use "
                    "a model whose template keeps it."
                )
        spans.append(range(start, len(after)))
    return text, spans


def check_whole(messages: Messages, text: str, where: str) -> None:
    """Refuse a template that leaves out what the system or the user says."""
    for message in messages:
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise OffsiteError(
                f"{where} has a message of the {message['role']} that the tokenizer's chat "
                "template leaves out or changes; put its text into another message, or remove it."
            )


def other_beginning(before: str, text: str, where: str) -> OffsiteError:
    """The refusal of an answer that lacks what the template puts before every answer."""
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(before, text, strict=False)))
    begun = before[same:]
    return OffsiteError(
        f"The tokenizer's chat template begins every answer with '{shown(begun.strip())}', but "
        f"{where} has an answer that begins differently; begin the assistant's messages with it, "
        "or use a model whose template does not add it."
    )


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
