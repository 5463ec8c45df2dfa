"""Training examples: conversations or plain text, from the forms that other programs write.

docs/training.md lists the forms. What a row says is read, refused by its name, or left out of the
example and counted; nothing is dropped in silence.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trimode.errors import InputError
from trimode.rows import near_miss, parse_json

Message = dict[str, Any]

FORMS = ("messages", "conversations", "prompt", "text")
_READ = (*FORMS, "images", "completion", "tools", "system", "chat_template_kwargs", "finish_reason")
_OURS = ("id", "skipped", "prompt_row")
"""Columns of `trimode convert`'s own files that need no mention."""
_PREFERENCES = "this trains on answers, not on preferences; give prompt and completion"
_REFUSED = {
    "chosen": _PREFERENCES,
    "rejected": _PREFERENCES,
    "functions": "give tools",
    "function_call": "give tool_calls in the message",
    "image": "give `images`, a list of paths",
    "videos": "the models here read text and pictures",
    "audios": "the models here read text and pictures",
    "audio": "the models here read text and pictures",
}
"""Columns that change what an example means, and what to do about each."""
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""ShareGPT's `from`, and our role for it."""
_WEIGHTS = ("weight", "train")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training example before tokenisation: messages, or plain text."""

    messages: tuple[Message, ...] = ()
    """As the chat template takes them."""
    context_only: frozenset[int] = frozenset()
    """Assistant turns (places in `messages`) that are read and not learned."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What else the template reads (`enable_thinking`)."""
    text: str = ""
    images: tuple[Any, ...] = ()
    """Pictures given beside the messages."""
    truncated: bool = False
    """The last answer was cut off: it has no end-of-turn token to learn."""

    @property
    def answers(self) -> list[int]:
        """Places of the assistant turns to learn."""
        return [
            i
            for i, message in enumerate(self.messages)
            if message["role"] == "assistant" and i not in self.context_only
        ]


def parse_conversation(row: Mapping[str, Any], where: str) -> Conversation:
    """A training example from one of `FORMS`.

    Raises:
        InputError: none or several of the forms, a wrong type, an empty assistant turn, a column
            or a field of a message that this cannot honour.
    """
    _refuse_columns(row, where)
    forms = [name for name in FORMS if row.get(name) is not None]
    if len(forms) != 1:
        found = f"has {' and '.join(forms)}" if forms else f"has {', '.join(row) or 'no field'}"
        allowed = "needs one of messages, conversations, prompt (with completion), text"
        raise InputError(where, found, allowed)
    (form,) = forms
    if form == "text":
        for name in ("completion", "tools", "system", "chat_template_kwargs", "images"):
            if row.get(name):
                raise InputError(f"{where}: {name}", "given with text", "goes with messages")
        return Conversation(text=_filled(row["text"], f"{where}: text"))
    if form == "prompt":
        found = _from_prompt(row, where)
    elif row.get("completion"):
        raise InputError(f"{where}: completion", f"given with {form}", "goes with prompt")
    else:
        turns = _json_list(row[form], f"{where}: {form}")
        found = _from_turns(turns, f"{where}: {form}")
    return replace(
        _with_system(found, row.get("system"), where),
        tools=_tools(row.get("tools"), f"{where}: tools"),
        variables=_variables(row.get("chat_template_kwargs"), f"{where}: chat_template_kwargs"),
        images=tuple(row.get("images") or ()),
        truncated=row.get("finish_reason") == "length",
    )


def unread_columns(row: Mapping[str, Any]) -> list[str]:
    """Columns that say nothing to training, such as a source or a category."""
    return [name for name in row if name not in _READ and name not in _OURS]


def _refuse_columns(row: Mapping[str, Any], where: str) -> None:
    for name, value in row.items():
        if name in _REFUSED and value not in (None, [], {}):
            raise InputError(f"{where}: {name}", "given", _REFUSED[name])
        if name == "label" and isinstance(value, bool):
            raise InputError(f"{where}: label", str(value), _PREFERENCES)
        meant = None if name in (*_READ, *_OURS) else near_miss(name, _READ)
        if meant is not None and meant not in row:
            raise InputError(f"{where}: {name}", "no such column", f"did you mean {meant}?")


def _from_prompt(row: Mapping[str, Any], where: str) -> Conversation:
    """`prompt` and `completion`, as texts or as lists of messages. The prompt is context."""
    prompt: Any = row["prompt"]
    completion: Any = row.get("completion")
    if isinstance(prompt, str) and not isinstance(completion, list):
        answer = _filled(completion, f"{where}: completion")
        user = {"role": "user", "content": _filled(prompt, f"{where}: prompt")}
        return Conversation((user, {"role": "assistant", "content": answer}))
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, list) or not value:
            found = "missing" if value is None else type(value).__name__
            allowed = "prompt and completion must both be texts, or both lists of messages"
            raise InputError(f"{where}: {name}", found, allowed)
    before = [_message(m, f"{where}: prompt[{i}]") for i, m in enumerate(prompt)]
    after = _from_turns(completion, f"{where}: completion")
    context = {i for i, (m, _) in enumerate(before) if m["role"] == "assistant"}
    context |= {i + len(before) for i in after.context_only}
    return Conversation((*(m for m, _ in before), *after.messages), frozenset(context))


def _from_turns(turns: list[Any], where: str) -> Conversation:
    if not turns:
        raise InputError(where, "[]", "must be a list, not empty")
    checked = [_message(turn, f"{where}[{i}]") for i, turn in enumerate(turns)]
    messages = tuple(message for message, _ in checked)
    if all(message["role"] != "assistant" for message in messages):
        raise InputError(where, "no assistant turn", "needs one to learn from")
    return Conversation(messages, frozenset(i for i, (_, learn) in enumerate(checked) if not learn))


def _message(turn: Any, where: str) -> tuple[Message, bool]:
    """A turn as a message, and whether it may be learned."""
    if not isinstance(turn, Mapping):
        raise InputError(where, type(turn).__name__, "must be an object with role and content")
    fields = {name: value for name, value in turn.items() if value not in (None, [], {})}
    if "from" in fields:
        fields = _from_sharegpt(fields, where)
    role = fields.get("role")
    if not isinstance(role, str) or not role:
        raise InputError(f"{where}.role", repr(role), "must be system, user, assistant or tool")
    learn = _learn(fields, role, where)
    message: Message = {name: v for name, v in fields.items() if name not in _WEIGHTS}
    if not isinstance(message.get("tool_calls", []), list):
        raise InputError(f"{where}.tool_calls", type(message["tool_calls"]).__name__, "a list")
    content = message.setdefault("content", "")
    if role == "assistant" and not message.get("tool_calls"):
        if not isinstance(content, list):
            _filled(content, f"{where}.content")
    elif not isinstance(content, str | list):
        raise InputError(f"{where}.content", type(content).__name__, "must be a string")
    return message, learn


def _from_sharegpt(fields: dict[str, Any], where: str) -> dict[str, Any]:
    speaker = fields.pop("from")
    if speaker not in _SPEAKERS:
        allowed = f"allowed: {', '.join(_SPEAKERS)}"
        raise InputError(f"{where}.from", repr(speaker), allowed)
    if "role" in fields or "content" in fields:
        raise InputError(where, "has from and role or content", "needs from and value")
    value = fields.pop("value", "")
    if speaker != "function_call":
        return {**fields, "role": _SPEAKERS[speaker], "content": value}
    try:
        call = json.loads(value)
    except (TypeError, ValueError):
        call = None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        found = repr(value)[:60]
        raise InputError(f"{where}.value", found, "must be JSON with name and arguments")
    function = {"name": call["name"], "arguments": call.get("arguments", {})}
    return {
        **fields,
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": function}],
    }


def _learn(fields: Mapping[str, Any], role: str, where: str) -> bool:
    """OpenAI's `weight` (0 or 1) and `train` (true or false) of a turn."""
    wanted = {}
    for name in _WEIGHTS:
        if name in fields:
            if fields[name] not in (0, 1, False, True):
                allowed = "must be 0 or 1" if name == "weight" else "must be true or false"
                raise InputError(f"{where}.{name}", repr(fields[name]), allowed)
            wanted[name] = bool(fields[name])
    if len(set(wanted.values())) > 1:
        raise InputError(f"{where}.train", "contradicts weight", "give one of them")
    if role != "assistant" and any(wanted.values()):
        raise InputError(f"{where}.{next(iter(wanted))}", "on a turn of " + role, "assistant only")
    return all(wanted.values())


def _with_system(found: Conversation, system: Any, where: str) -> Conversation:
    """The conversation, after the row's own system message if it has one."""
    if system in (None, ""):
        return found
    if found.messages[0]["role"] == "system":
        raise InputError(f"{where}: system", "given beside a system turn", "give one of them")
    message = {"role": "system", "content": _filled(system, f"{where}: system")}
    moved = frozenset(i + 1 for i in found.context_only)
    return replace(found, messages=(message, *found.messages), context_only=moved)


def _tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...] | None:
    if value in (None, "", []):
        return None
    tools = _json_list(value, where)
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InputError(f"{where}[{i}]", type(tool).__name__, "must be an object")
    return tuple(tools)


def _variables(value: Any, where: str) -> Mapping[str, Any]:
    if value in (None, "", {}):
        return {}
    parsed = _json(value, where)
    if not isinstance(parsed, dict):
        raise InputError(where, type(parsed).__name__, "must be an object")
    return parsed


def _json_list(value: Any, where: str) -> list[Any]:
    parsed = _json(value, where)
    if not isinstance(parsed, list) or not parsed:
        raise InputError(where, repr(parsed)[:60], "must be a list, not empty")
    return parsed


def _json(value: Any, where: str) -> Any:
    """A value, or the JSON text of one, which is how tables hold lists."""
    if not isinstance(value, str):
        return value
    return parse_json(value, where)


def message_fields(messages: Iterable[Message]) -> set[str]:
    """Names of the fields that messages have beside role and content."""
    return {name for message in messages for name in message if name not in ("role", "content")}


def _filled(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty" if value in (None, "") or isinstance(value, str) else type(value).__name__
        raise InputError(where, found, "must be text, not empty")
    return value
