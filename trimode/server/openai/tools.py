"""Tools and structured output: what the model sees of them, the form of its answer, its calls.

A call is written as Hermes models write it: `<tool_call>`, a JSON object with `name` and
`arguments`, `</tool_call>`. A grammar holds the model to that form once it begins a call.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.engine import encode_prompt
from trimode.errors import InputError
from trimode.text import JSON_STYLE, json_grammar, lark_grammar

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MOST_CALLS = 8
_STYLE = {"x-guidance": JSON_STYLE}
_PREAMBLE = (
    "You may call these functions. To call one, answer with a JSON object between tags:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>\n'
)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form that an answer must have."""

    grammar: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    """Tools that the answer may call."""
    field: str = "response_format"
    """The body field that asks for the form."""


def answer_form(
    tools: list[dict[str, Any]] | None,
    tool_choice: Any,
    response_format: dict[str, Any] | None,
    *,
    parallel: bool,
) -> AnswerForm:
    """The form that a request's fields ask for.

    Raises:
        InputError: a field is not as OpenAI defines it.
    """
    schema = _schema(response_format)
    offered, forced = _choice(_checked(tools), tool_choice)
    if not offered:
        return AnswerForm(None if schema is None else json_grammar(schema))
    call = {"anyOf": [_call_schema(tool) for tool in offered], **_STYLE}
    count = f"{{1,{_MOST_CALLS}}}" if parallel else ""
    rules = [f"calls: call{count}", f'call: "{_OPEN}\\n" object "\\n{_CLOSE}"']
    rules.append(f"object: %json {json.dumps(call)}")
    if forced:
        return AnswerForm(lark_grammar("\n".join(["start: calls", *rules])), offered, "tools")
    if schema is None:
        rules.append("text: /([^<](.|\\n)*)?/")
    else:
        rules.append(f"text: %json {json.dumps({**schema, **_STYLE})}")
    return AnswerForm(lark_grammar("\n".join(["start: text | calls", *rules])), offered, "tools")


def _schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        allowed = "allowed: text, json_object, json_schema"
        raise InputError("response_format.type", repr(kind), allowed)
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise InputError("response_format.json_schema.schema", repr(schema), "must be an object")
    return schema


def _checked(tools: list[dict[str, Any]] | None) -> tuple[dict[str, Any], ...]:
    for i, tool in enumerate(tools or ()):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InputError(f"tools[{i}].type", repr(tool.get("type")), "allowed: function")
        if not isinstance(function.get("name"), str):
            raise InputError(f"tools[{i}].function.name", "missing", "must be a text")
    return tuple(tools or ())


def _choice(
    tools: tuple[dict[str, Any], ...], choice: Any
) -> tuple[tuple[dict[str, Any], ...], bool]:
    """The tools that may be called, and whether one must be."""
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        named = tuple(tool for tool in tools if tool["function"]["name"] == name)
        if not named:
            raise InputError("tool_choice", repr(name), "must name one of the tools")
        return named, True
    if choice not in (None, "none", "auto", "required"):
        raise InputError("tool_choice", repr(choice), "allowed: none, auto, required, a function")
    if choice == "required" and not tools:
        raise InputError("tool_choice", "required without tools", "give tools")
    return (() if choice == "none" else tools), choice == "required"


def _call_schema(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": function.get("parameters") or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def chat_prompt(
    model: LoadedModel, messages: list[dict[str, Any]], form: AnswerForm
) -> tuple[int, ...]:
    """The tokens of a conversation, with the tools that may be called.

    Raises:
        InputError: a message is not as OpenAI defines it.
    """
    template = model.chat_template.source if model.chat_template else ""
    messages = messages_with_tools(messages, form, template)
    return tuple(encode_prompt(model, messages, tools=[*form.tools] or None))


def messages_with_tools(
    messages: list[dict[str, Any]], form: AnswerForm, template: str
) -> list[dict[str, Any]]:
    """The messages, with tools and earlier calls as text if the chat template does not show them.

    Args:
        messages: of the conversation.
        form: has the tools.
        template: source of the chat template.

    Raises:
        InputError: an earlier call is not as OpenAI defines it.
    """
    if "tool_calls" not in template:
        messages = [_with_calls(message, i) for i, message in enumerate(messages)]
    if not form.tools or "tools" in template:
        return messages
    listed = "\n".join(json.dumps(tool["function"]) for tool in form.tools)
    text = _PREAMBLE + listed
    first = messages[0]
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_calls(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message with its calls as text, as the model writes them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    content = message.get("content") or ""
    if not isinstance(content, str):
        allowed = "must be text if there are tool_calls"
        raise InputError(f"messages[{index}].content", "parts", allowed)
    texts = [content] if content else []
    for j, call in enumerate(calls if isinstance(calls, list) else [calls]):
        function: Any = call.get("function") if isinstance(call, dict) else None
        place = f"messages[{index}].tool_calls[{j}].function"
        try:
            written = {"name": function["name"], "arguments": json.loads(function["arguments"])}
        except (KeyError, TypeError, ValueError):
            allowed = "must have a name, and arguments that are JSON in a string"
            raise InputError(place, repr(function)[:80], allowed) from None
        texts.append(f"{_OPEN}\n{json.dumps(written, ensure_ascii=False)}\n{_CLOSE}")
    return {**message, "content": "\n".join(texts)}


def may_be_call(text: str) -> bool:
    """Whether an answer that begins with this text may turn out to be a call."""
    return text.startswith(_OPEN) or _OPEN.startswith(text)


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls of a finished answer as OpenAI's objects; none if it is text or was cut off."""
    found = []
    for part in text.split(_OPEN)[1:]:
        body, closed, _ = part.partition(_CLOSE)
        try:
            call = json.loads(body)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, KeyError, TypeError):
            return []
        if not closed:
            return []
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        call_id = f"call_{secrets.token_hex(8)}"
        found.append({"id": call_id, "type": "function", "function": function})
    return found
