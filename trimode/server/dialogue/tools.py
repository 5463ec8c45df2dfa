"""The tools that a request offers, and which of them may or must be called."""

from dataclasses import dataclass
from typing import Any

from trimode.errors import InputError


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: dict[str, Any] | None
    """JSON schema of its arguments; None: it takes none."""
    strict: bool
    """Whether a schema that cannot be enforced whole is refused."""
    source: dict[str, Any]
    """As chat templates expect it: OpenAI's object."""
    field: str
    """Where the request gives it, for errors."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """The tools of a request, as far as the answer may use them."""

    offered: tuple[Tool, ...] = ()
    """Tools that the answer may call."""
    forced: bool = False
    """Whether it must call one."""
    parallel: bool = True
    """Whether it may make several calls."""


def read_tool(tool: Any, field: str) -> Tool:
    """A tool from OpenAI's chat form, `{"type": "function", "function": {...}}`.

    Raises:
        InputError: it is not a function with a name, or its parameters are no object.
    """
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    function = tool.get("function") if isinstance(tool, dict) else None
    if kind != "function":
        raise InputError(f"{field}.type", repr(kind), "allowed: function")
    if not isinstance(function, dict):
        found = "missing" if function is None else repr(function)[:80]
        raise InputError(f"{field}.function", found, "must be an object with name and parameters")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{field}.function.name", repr(name), "must be a text")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        found = type(parameters).__name__
        raise InputError(f"{field}.function.parameters", found, "must be a JSON schema")
    strict = function.get("strict") is True
    return Tool(name, parameters, strict, {**tool, "type": "function"}, f"{field}.function")


def function_tool(
    name: Any, description: Any, parameters: Any, *, strict: bool, field: str
) -> Tool:
    """A tool from the fields of a protocol that has them flat.

    Raises:
        InputError: see `read_tool`.
    """
    function = {"name": name, "parameters": parameters, "strict": strict}
    if description is not None:
        function["description"] = description
    found = read_tool({"type": "function", "function": function}, field)
    source = {k: v for k, v in function.items() if k != "strict" and v is not None}
    return Tool(
        found.name,
        found.parameters,
        strict,
        {"type": "function", "function": source},
        field,
    )


def choose(tools: tuple[Tool, ...], choice: Any, *, parallel: bool = True) -> ToolChoice:
    """What OpenAI's `tool_choice` allows of the tools.

    Raises:
        InputError: the choice is not as OpenAI defines it, or names no tool.
    """
    if isinstance(choice, dict):
        return _chosen(tools, choice, parallel=parallel)
    if choice not in (None, "none", "auto", "required"):
        allowed = "allowed: none, auto, required, a function, allowed_tools"
        raise InputError("tool_choice", repr(choice), allowed)
    if choice == "required" and not tools:
        raise InputError("tool_choice", "required without tools", "give tools")
    offered = () if choice == "none" else tools
    return ToolChoice(offered, choice == "required", parallel)


def _chosen(tools: tuple[Tool, ...], choice: dict[str, Any], *, parallel: bool) -> ToolChoice:
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        mode = inner.get("mode", "auto") if isinstance(inner, dict) else None
        listed = inner.get("tools") if isinstance(inner, dict) else None
        if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
            allowed = "needs mode (auto or required) and a list of tools"
            raise InputError("tool_choice.allowed_tools", repr(inner)[:80], allowed)
        names = [_named(tool) for tool in listed]
        return ToolChoice(_with_names(tools, names), mode == "required", parallel)
    return ToolChoice(_with_names(tools, [_named(choice)]), forced=True, parallel=False)


def _named(choice: Any) -> Any:
    """The name that a choice gives, nested as in chat or flat as in responses."""
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _with_names(tools: tuple[Tool, ...], names: list[Any]) -> tuple[Tool, ...]:
    known = {tool.name for tool in tools}
    for name in names:
        if not isinstance(name, str) or name not in known:
            allowed = f"must name one of the tools: {', '.join(sorted(known)) or 'there are none'}"
            raise InputError("tool_choice", repr(name), allowed)
    return tuple(tool for tool in tools if tool.name in names)
