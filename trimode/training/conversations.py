"""Training examples: conversations or plain text, read from files and checked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimode.errors import InputError

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training example before tokenisation: messages, or plain text."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    truncated: bool = False
    """The last answer was cut off: it has no end-of-turn token to learn."""


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSONL file with the place each comes from (`file line n`).

    Raises:
        InputError: a line is not a JSON object; names the line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(str(path), f"not readable ({error.strerror})", "a JSONL file") from None
    with file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                where = f"{path} line {number}"
                yield where, parse_row(raw, where)


def parse_row(raw: bytes | str, where: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InputError: the text is not a JSON object.
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"not JSON ({error})", "must be one object a line") from None
    if not isinstance(row, dict):
        raise InputError(where, type(row).__name__, "must be a JSON object")
    return row


def parse_conversation(row: dict[str, Any], where: str) -> Conversation:
    """A training example from `messages`, `prompt` and `completion`, or `text`.

    Raises:
        InputError: none or several of the three, a wrong type, an empty assistant turn.
    """
    forms = [name for name in ("messages", "prompt", "text") if row.get(name) is not None]
    if len(forms) != 1:
        found = f"has {' and '.join(forms)}" if forms else f"has {', '.join(row) or 'no field'}"
        raise InputError(where, found, "needs one of messages, prompt (with completion), text")
    if forms == ["text"]:
        return Conversation(text=_filled(row["text"], f"{where}: text"))
    if forms == ["prompt"]:
        answer = _filled(row.get("completion"), f"{where}: completion")
        prompt = _filled(row["prompt"], f"{where}: prompt")
        messages: Any = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    else:
        messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages", repr(messages)[:60], "must be a list, not empty")
    checked = tuple(
        _message(message, f"{where}: messages[{i}]") for i, message in enumerate(messages)
    )
    if all(message["role"] != "assistant" for message in checked):
        raise InputError(f"{where}: messages", "no assistant turn", "needs one to learn from")
    return Conversation(messages=checked, truncated=row.get("finish_reason") == "length")


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise InputError(where, type(message).__name__, "must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InputError(f"{where}.role", repr(role), "must be system, user, assistant or tool")
    content = message.get("content")
    if role == "assistant":
        return {"role": role, "content": _filled(content, f"{where}.content")}
    if not isinstance(content, str):
        raise InputError(f"{where}.content", type(content).__name__, "must be a string")
    return {"role": role, "content": content}


def _filled(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty" if value in (None, "") or isinstance(value, str) else type(value).__name__
        raise InputError(where, found, "must be text, not empty")
    return value
