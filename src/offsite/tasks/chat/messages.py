"""The messages of a conversation, read from a file and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offsite.errors import OffsiteError
from offsite.files import shown
from offsite.tasks.rows import Row

ROLES = ("system", "user", "assistant")
KEYS = ("role", "content", "weight")
TOOLS = (
    "tools", "tool_calls", "tool_call_id", "tool_choice", "parallel_tool_calls",
    "functions", "function_call",
)  # fmt: skip
OTHER = (
    "documents", "chat_template", "chat_template_kwargs", "system", "weight", "weights",
    "enable_thinking", "add_generation_prompt", "continue_final_message",
    "text", "prompt", "completion", "chosen", "rejected", "label", "images", "audio",
)  # fmt: skip
ALIASES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def read_messages(row: Row) -> list[dict[str, Any]]:
    """The messages of one line: ``role``, ``content``, and ``weight`` where one is given.

    Raises:
        OffsiteError: no messages, an unknown role, no turn of the assistant to learn from, or a key
            that asks for something that is not learnt here; the line and the key are named.
    """
    check_line(row)
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise OffsiteError(f'{row.where} needs a non-empty list under "messages".')
    found = [read_message(message, row.where) for message in messages]
    if not any(is_learnt(message) for message in found):
        raise OffsiteError(
            f"{row.where} has no message of the assistant to learn from; add one or "
            "remove the line."
        )
    return found


def check_line(row: Row) -> None:
    """Refuse a line that has no messages, or a key that would change what they mean."""
    if "messages" not in row.values:
        other = "conversations" if "conversations" in row.values else None
        hint = f' (it has "{other}", with other names for the roles and texts)' if other else ""
        raise OffsiteError(
            f'{row.where} has no "messages"{hint}; write a list of {{"role": ..., "content": ...}} '
            f"with the roles {', '.join(ROLES)} under that name."
        )
    for key in (*TOOLS, *OTHER):
        if row.values.get(key) not in (None, [], {}, ""):
            raise unused(row.where, key, "besides its messages")


def read_message(message: Any, where: str) -> dict[str, Any]:
    """One message, checked."""
    if not isinstance(message, Mapping):
        raise OffsiteError(f'{where} needs an object with "role" and "content" in each message.')
    for key, value in message.items():
        if key not in KEYS and value not in (None, [], {}, ""):
            raise unused(where, key, "in a message")
    if message.get("role") in ("tool", "function"):
        raise unused(where, "tool", "as the role of a message")
    if (role := message.get("role")) not in ROLES:
        known = role.lower() if isinstance(role, str) else ""
        known = ALIASES.get(known, known)
        hint = f"; write '{known}' for '{role}'" if known in ROLES else ""
        raise OffsiteError(f'{where} needs a "role" of {", ".join(ROLES)} in each message{hint}.')
    if not isinstance(message.get("content"), str):
        parts = isinstance(message.get("content"), list)
        hint = "; it has a list of parts, so join their texts" if parts else ""
        raise OffsiteError(f'{where} needs text under "content" in each message{hint}.')
    weight = message.get("weight")
    if weight not in (None, 0, 1) or isinstance(weight, bool):
        raise OffsiteError(f'{where} has a "weight" that is not 0 or 1; use 0 to leave a turn out.')
    plain = {"role": message["role"], "content": message["content"]}
    return plain if weight is None else {**plain, "weight": int(weight)}


def unused(where: str, key: object, place: str) -> OffsiteError:
    """The refusal of a key whose meaning would be lost."""
    tools = "tool" in str(key) or "function" in str(key)
    what = "calls of tools are not learnt here" if tools else "that key is not used here"
    return OffsiteError(
        f"{where} has '{shown(key)}' {place}; {what}, so remove it or leave the conversation out."
    )


def is_learnt(message: Mapping[str, Any]) -> bool:
    """Whether a message is the assistant's and is not left out by a weight of 0."""
    return bool(message["role"] == "assistant" and message.get("weight", 1) == 1)
