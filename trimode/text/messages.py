"""Checks the messages of a conversation, and copies them as plain JSON values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimode.errors import InputError

Message = dict[str, Any]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names in use for a message's thoughts, the usual one first."""
_CONTENT = "must be text or a list of text parts"


def checked_messages(messages: Any) -> list[Message]:
    """Copies of the messages, text parts joined.

    A missing content becomes the empty text, because a template would print it as "None". Thoughts
    are given under the names that templates read, as Hugging Face does. The arguments of calls are
    objects, which templates expect, also if they come as JSON in a string, as OpenAI has them.

    Raises:
        InputError: names the message and field at fault.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError("messages", type(messages).__name__, "must be a list of messages")
    if not messages:
        raise InputError("messages", "empty", "must hold at least one message")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def plain_data(value: Any, where: str) -> Any:
    """A copy of a JSON value, lists and objects rebuilt.

    A template is foreign code: it must not get hold of objects with methods.

    Raises:
        InputError: names the place where something else was found.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # for example an enum
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_key(k, where): plain_data(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InputError(where, type(value).__name__, "must be a JSON value")


def _checked(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise InputError(where, type(message).__name__, "must be an object")
    role = message.get("role")
    if role not in _ROLES:
        raise InputError(f"{where}.role", repr(role), f"allowed: {', '.join(_ROLES)}")
    content = _content(message.get("content"), f"{where}.content")
    if content is None and role not in ("assistant", "tool"):
        raise InputError(f"{where}.content", "missing", _CONTENT)
    plain = plain_data({k: v for k, v in message.items() if k != "content"}, where)
    plain["content"] = content or ""
    if plain.get("tool_calls"):
        plain["tool_calls"] = _calls(plain["tool_calls"], f"{where}.tool_calls")
    thoughts = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
    if thoughts is not None:
        plain = {"thinking": thoughts, **plain, "reasoning_content": thoughts}
    return plain


def _calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list):
        raise InputError(where, type(calls).__name__, "must be a list")
    return [_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"{where}.function", repr(function)[:80], "must have a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            found = repr(arguments)[:80]
            raise InputError(f"{where}.function.arguments", found, "must be JSON") from None
    if arguments is None or arguments == "" or isinstance(arguments, str):
        arguments = {}
    if not isinstance(arguments, dict):
        found = repr(arguments)[:80]
        raise InputError(f"{where}.function.arguments", found, "must be a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def _content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InputError(where, type(content).__name__, _CONTENT)
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of parts that are text, and the field that holds it."""


def _part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping):
        raise InputError(where, type(part).__name__, "must be an object")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise InputError(f"{where}.type", repr(kind), "allowed: text, image_url")
    text = part.get(_TEXTS[kind])
    if not isinstance(text, str):
        raise InputError(f"{where}.{_TEXTS[kind]}", type(text).__name__, "must be a string")
    return text


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(where, f"key {key!r}", "must have strings as keys")
    return str.__str__(key)
