"""What Anthropic's /v1/messages takes: its blocks as chat messages, and its tools."""

from typing import Any

from trimode.errors import InputError
from trimode.server.dialogue.tools import Tool, ToolChoice, function_tool
from trimode.text import WHERE

Message = dict[str, Any]


def read_tools(tools: list[Any] | None) -> tuple[tuple[Tool, ...], list[str]]:
    """The tools that clients run, and warnings for those that Anthropic runs itself."""
    found: list[Tool] = []
    warnings: list[str] = []
    for i, tool in enumerate(tools or ()):
        place = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise InputError(place, repr(tool)[:80], "must be an object")
        kind = tool.get("type", "custom")
        if kind != "custom" and "input_schema" not in tool:
            warnings.append(f"{place}: {kind} tools do not run here, left out")
            continue
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise InputError(f"{place}.input_schema", repr(schema)[:80], "must be a JSON schema")
        found.append(
            function_tool(
                tool.get("name"),
                tool.get("description"),
                schema,
                strict=tool.get("strict") is True,
                field=place,
            )
        )
    return tuple(found), warnings


def choice_of(tools: tuple[Tool, ...], choice: dict[str, Any] | None) -> ToolChoice:
    """Which tools may be called.

    Raises:
        InputError: the choice is not as Anthropic defines it.
    """
    kind = (choice or {}).get("type", "auto")
    parallel = (choice or {}).get("disable_parallel_tool_use") is not True
    if kind == "none":
        return ToolChoice()
    if kind == "auto":
        return ToolChoice(tools, parallel=parallel)
    if kind == "any" and tools:
        return ToolChoice(tools, forced=True, parallel=parallel)
    name = (choice or {}).get("name")
    named = tuple(tool for tool in tools if tool.name == name)
    if kind != "tool" or not named:
        found = repr(name) if kind == "tool" else repr(kind)
        allowed = "allowed: auto, any, tool with the name of one of the tools, none"
        raise InputError("tool_choice", found, allowed)
    return ToolChoice(named, forced=True, parallel=False)


def messages_of(message: Message, place: str) -> list[Message]:
    """A message as OpenAI's: results of tools are messages of their own, before the text."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise InputError(f"{place}.role", repr(role), "allowed: user, assistant")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise InputError(f"{place}.content", repr(content)[:80], "must be text or blocks")
    results: list[Message] = []
    calls: list[dict[str, Any]] = []
    parts: list[Message] = []
    thoughts: list[str] = []
    for j, block in enumerate(content):
        where = f"{place}.content[{j}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in ("text", "image"):
            parts.append(_part(block, where))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            results.append(
                {
                    "role": "tool",
                    "tool_call_id": block.get("tool_use_id"),
                    "content": _result(block.get("content") or "", f"{where}.content"),
                }
            )
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind != "redacted_thinking":
            allowed = "allowed: text, image, tool_use, tool_result, thinking"
            raise InputError(f"{where}.type", repr(kind), allowed)
    own: Message = {"role": role, "content": _joined(parts)}
    if calls:
        own["tool_calls"] = calls
    if thoughts:
        own["reasoning_content"] = "\n".join(thoughts)
    return [*results, *([own] if parts or calls or not results else [])]


def _joined(parts: list[Message]) -> str | list[Message]:
    """The text of parts, or the parts if there are pictures among them."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _parts(content: str | list[Message]) -> list[Message]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _result(content: Any, where: str) -> str | list[Message]:
    """What a tool answered: text, or text and pictures."""
    if not isinstance(content, list) or not any(map(_is_picture, content)):
        return text_of(content, where)
    return [_part(block, f"{where}[{i}]") for i, block in enumerate(content)]


def _part(block: Any, where: str) -> Message:
    """A block of text or a picture as OpenAI's part."""
    if _is_picture(block):
        return _image(block, where)
    return {"type": "text", "text": _text(block, where)}


def _is_picture(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "image"


def _image(block: Message, where: str) -> Message:
    """A picture as OpenAI's."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("base64", "url"):
        raise InputError(f"{where}.source.type", repr(kind), "allowed: base64, url")
    name = "data" if kind == "base64" else "url"
    value = source.get(name)
    if not isinstance(value, str):
        raise InputError(f"{where}.source.{name}", repr(value)[:80], "must be a text")
    url = f"data:{source.get('media_type', '')};base64,{value}" if kind == "base64" else value
    return {"type": "image_url", "image_url": {"url": url}, WHERE: f"{where}.source.{name}"}


def merged(messages: list[Message]) -> list[Message]:
    """Turns of one role that follow each other as one, as Anthropic takes them."""
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        if last is not None and last["role"] == message["role"] == "user":
            parts = [*_parts(last["content"]), *_parts("\n"), *_parts(message["content"])]
            found[-1] = {**last, "content": _joined(parts)}
        else:
            found.append(message)
    return found


def text_of(content: Any, place: str) -> str:
    """The text of a string or of text blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(place, repr(content)[:80], "must be text or text blocks")
    return "\n".join(_text(block, f"{place}[{i}]") for i, block in enumerate(content))


def _text(block: Any, place: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind != "text" or not isinstance(block.get("text"), str):
        raise InputError(f"{place}.type", repr(kind), "allowed: text")
    return block["text"]
