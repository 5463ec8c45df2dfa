"""What /v1/responses takes: items of its input as chat messages, and its tools."""

from dataclasses import dataclass
from typing import Any

from trimode.errors import InputError
from trimode.server.dialogue.tools import Tool, function_tool
from trimode.text import WHERE

Message = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_ITEMS = "message, function_call, function_call_output, reasoning"


def messages_of(given: str | list[dict[str, Any]]) -> list[Message]:
    """The input as chat messages: calls and thoughts belong to the assistant's turn beside them.

    Raises:
        InputError: an item is not as OpenAI defines it, or needs a memory of earlier answers.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    thought = ""
    for i, item in enumerate(given):
        kind, place = item.get("type", "message"), f"input[{i}]"
        if kind == "message":
            message = _message(item, place)
        elif kind == "function_call":
            message = {"role": "assistant", "content": "", "tool_calls": [_call(item, place)]}
        elif kind == "function_call_output":
            message = _output(item, place)
        elif kind == "reasoning":
            thought += _texts(item.get("content") or [], f"{place}.content")
            continue
        elif kind == "item_reference":
            allowed = "nothing is stored here: send the item itself"
            raise InputError(f"{place}.type", repr(kind), allowed)
        else:
            raise InputError(f"{place}.type", repr(kind), f"allowed: {_ITEMS}")
        if thought and message["role"] == "assistant":
            message["reasoning_content"], thought = thought, ""
        if _continues(messages, message):
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _continues(messages: list[Message], message: Message) -> bool:
    """Whether a message consists of calls that belong to the assistant's turn before it."""
    return bool(messages and messages[-1]["role"] == "assistant" and "tool_calls" in message)


def _message(item: dict[str, Any], place: str) -> Message:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise InputError(f"{place}.role", repr(role), f"allowed: {', '.join(_ROLES)}")
    if isinstance(content, list):
        content = _content(content, f"{place}.content")
    if not isinstance(content, str | list):
        raise InputError(f"{place}.content", repr(content)[:80], "must be text or parts")
    return {"role": role, "content": content}


def _content(parts: list[Any], place: str) -> str | list[dict[str, Any]]:
    """A text, or text and pictures as parts of a chat message."""
    if not any(map(_is_picture, parts)):
        return _texts(parts, place)
    return [
        {**part, WHERE: f"{place}[{j}]"}
        if _is_picture(part)
        else {"type": "text", "text": _texts([part], place, j)}
        for j, part in enumerate(parts)
    ]


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "input_image"


def _texts(parts: Any, place: str, first: int = 0) -> str:
    """The texts of parts, of which the first one has the number `first`."""
    texts = []
    for j, part in enumerate(parts if isinstance(parts, list) else [parts], first):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXTS:
            raise InputError(
                f"{place}[{j}].type", repr(kind), "allowed: input_text, output_text, input_image"
            )
        texts.append(str(part.get("refusal" if kind == "refusal" else "text", "")))
    return "".join(texts)


def _call(item: dict[str, Any], place: str) -> dict[str, Any]:
    name, call_id = item.get("name"), item.get("call_id")
    for field, value in (("name", name), ("call_id", call_id)):
        if not isinstance(value, str) or not value:
            raise InputError(f"{place}.{field}", repr(value), "must be a text")
    function = {
        "name": _flat(item.get("namespace"), str(name)),
        "arguments": item.get("arguments"),
    }
    return {"id": call_id, "type": "function", "function": function}


def _output(item: dict[str, Any], place: str) -> Message:
    output = item.get("output")
    if isinstance(output, list):
        output = _content(output, f"{place}.output")
    if not isinstance(output, str | list):
        raise InputError(f"{place}.output", repr(output)[:80], "must be text or parts")
    return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}


@dataclass(frozen=True, slots=True)
class ResponseTools:
    """The tools of a request."""

    functions: tuple[Tool, ...]
    spaces: dict[str, tuple[str, str]]
    """Namespace and name of those that came in a namespace, by the name that the model sees."""
    warnings: tuple[str, ...]
    """What was left out."""

    def original(self, name: str) -> tuple[str | None, str]:
        """Namespace and name of a tool, as the client knows it."""
        return self.spaces.get(name, (None, name))


def read_tools(tools: list[Any] | None) -> ResponseTools:
    """Function tools, those in namespaces too. Tools that OpenAI itself runs are left out.

    Raises:
        InputError: a function is not as OpenAI defines it.
    """
    functions: list[Tool] = []
    spaces: dict[str, tuple[str, str]] = {}
    warnings: list[str] = []
    for i, tool in enumerate(tools or ()):
        place = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise InputError(place, repr(tool)[:80], "must be an object")
        kind = tool.get("type")
        if kind == "function":
            functions.append(_function(tool, place, None))
        elif kind == "namespace":
            for j, inner in enumerate(tool.get("tools") or ()):
                where = f"{place}.tools[{j}]"
                if not isinstance(inner, dict) or inner.get("type", "function") != "function":
                    warnings.append(f"{where}: not a function, left out")
                    continue
                found = _function(inner, where, tool.get("name"))
                functions.append(found)
                spaces[found.name] = (str(tool.get("name")), str(inner.get("name")))
        elif isinstance(kind, str):
            warnings.append(f"{place}: {kind} tools do not run here, left out")
        else:
            raise InputError(f"{place}.type", repr(kind), "allowed: function, namespace")
    return ResponseTools(tuple(functions), spaces, tuple(warnings))


def _function(tool: dict[str, Any], place: str, space: Any) -> Tool:
    name = tool.get("name")
    return function_tool(
        _flat(space, name) if isinstance(name, str) else name,
        tool.get("description"),
        tool.get("parameters"),
        strict=tool.get("strict") is True,
        field=place,
    )


def _flat(space: Any, name: str) -> str:
    """The name that the model sees of a tool in a namespace."""
    if not isinstance(space, str) or not space or name.startswith(space):
        return name
    return f"{space}{name}" if space.endswith("__") else f"{space}__{name}"
