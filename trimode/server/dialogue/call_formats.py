"""How models write calls of tools: one class a format.

A format says how calls are spelled, as a grammar, and how to read them back. Which format a model
has learned follows from its chat template.
"""

import json
import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

MOST_CALLS = 8
"""Calls of one answer."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """Grammar rules (Lark) of the calls of an answer."""

    after_opening: str
    """Expression for all that follows the opening of the first call."""
    rules: tuple[str, ...]


class CallFormat(ABC):
    """One way to write calls."""

    name: str
    opening: str
    """The text that begins the first call. The empty text: an answer that is a call from its
    first character."""
    markers: tuple[str, ...]
    """Tokens that belong to the format; vocabularies may have them as special ones."""
    header: re.Pattern[str]
    """From after the opening to the arguments; group 1 is the name."""
    between: re.Pattern[str]
    """From the end of a call's arguments to the next call's header."""
    end: re.Pattern[str]
    """From the end of the last call's arguments to the end of the calls."""

    @abstractmethod
    def grammar(self, names: Sequence[str], *, parallel: bool) -> CallRules:
        """Rules for calls of these tools; `arguments_0` and so on are rules of their arguments."""

    def call_id(self) -> str:
        """An id for a call, of OpenAI's kind."""
        return f"call_{secrets.token_hex(8)}"


def _quoted(text: str) -> str:
    """A literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _repeated(rule: str, *, parallel: bool) -> str:
    return f" {rule}{{0,{MOST_CALLS - 1}}}" if parallel else ""


def _any_of(names: Sequence[str]) -> str:
    return "call: " + " | ".join(f"call_{i}" for i in range(len(names)))


def _object_calls(names: Sequence[str], arguments: str) -> list[str]:
    """Rules of calls as JSON objects with a name and arguments."""
    rules = [_any_of(names)]
    for i, name in enumerate(names):
        begin = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{arguments}": '
        rules.append(f'call_{i}: {_quoted(begin)} arguments_{i} "}}"')
    return rules


_OBJECT = r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*'


class Hermes(CallFormat):
    """`<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>` (Qwen, Hermes)."""

    name = "hermes"
    opening = "<tool_call>"
    markers = ("<tool_call>", "</tool_call>")
    header = re.compile(_OBJECT)
    between = re.compile(r"\s*\}\s*</tool_call>\s*<tool_call>")
    end = re.compile(r"\s*\}\s*</tool_call>\s*")

    def grammar(self, names: Sequence[str], *, parallel: bool) -> CallRules:
        """See `CallFormat`."""
        after = 'body "\\n</tool_call>"' + _repeated("more", parallel=parallel)
        rules = ['body: "\\n" call', 'more: "\\n<tool_call>" body "\\n</tool_call>"']
        return CallRules(after, (*rules[: 1 + parallel], *_object_calls(names, "arguments")))


class Llama3(CallFormat):
    """A JSON object with `name` and `parameters`, and nothing else, is the answer (Llama 3)."""

    name = "llama3_json"
    opening = ""
    markers = ("<|python_tag|>",)
    header = re.compile(r"(?:<\|python_tag\|>)?" + _OBJECT)
    between = re.compile(r"(?!)")
    end = re.compile(r"\s*\}\s*")

    def grammar(self, names: Sequence[str], *, parallel: bool) -> CallRules:
        """See `CallFormat`. Its templates allow one call."""
        del parallel
        return CallRules('"<|python_tag|>"? call', tuple(_object_calls(names, "parameters")))


class _Mistral(CallFormat):
    def call_id(self) -> str:
        """Nine letters and digits: its templates refuse others."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class MistralList(_Mistral):
    """`[TOOL_CALLS]` and a JSON list of objects with `name` and `arguments` (Mistral to 2024)."""

    name = "mistral_list"
    opening = "[TOOL_CALLS]"
    markers = ("[TOOL_CALLS]",)
    header = re.compile(r"(?:\s*\[)?" + _OBJECT)
    between = re.compile(r"\s*\}\s*,")
    end = re.compile(r"\s*\}\s*\]\s*")

    def grammar(self, names: Sequence[str], *, parallel: bool) -> CallRules:
        """See `CallFormat`."""
        after = '"[" call' + _repeated("more", parallel=parallel) + ' "]"'
        rules = ['more: ", " call'] if parallel else []
        return CallRules(after, (*rules, *_object_calls(names, "arguments")))


class MistralArgs(_Mistral):
    """`[TOOL_CALLS]`, the name, `[ARGS]` and a JSON object for each call (Mistral since 2025)."""

    name = "mistral_args"
    opening = "[TOOL_CALLS]"
    markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    header = re.compile(r"\s*([^\[\s]+)(?:\[CALL_ID\]\w*)?\[ARGS\]\s*")
    between = re.compile(r"\s*\[TOOL_CALLS\]")
    end = re.compile(r"\s*")

    def grammar(self, names: Sequence[str], *, parallel: bool) -> CallRules:
        """See `CallFormat`."""
        after = "call" + _repeated("more", parallel=parallel)
        rules = ['more: "[TOOL_CALLS]" call'] if parallel else []
        calls = [
            f"call_{i}: {_quoted(f'{name}[ARGS]')} arguments_{i}" for i, name in enumerate(names)
        ]
        return CallRules(after, (*rules, _any_of(names), *calls))


HERMES = Hermes()


def format_of(template: str) -> CallFormat | None:
    """The format that a chat template teaches; None: it shows tools in a form not known here.

    A template that shows no tools gets ours, which is Hermes'.
    """
    if "<function=" in template:
        return None  # Qwen3-Coder's XML
    if "tools" not in template or "<tool_call>" in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MistralArgs() if "[ARGS]" in template else MistralList()
    if '"parameters"' in template and ("<|python_tag|>" in template or "ipython" in template):
        return Llama3()
    return None
