"""Chat templates: Hugging Face's Jinja conventions in a sandbox."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trimode.errors import CheckpointError, InputError

_ROLES = ("system", "developer", "user", "assistant", "tool")

Message = dict[str, Any]


class _GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training masks; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders messages into the text a model was trained on."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self.bos_token, self.eos_token = bos_token, eos_token
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError("chat_template", str(error), "a Jinja template") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: `role` and `content`; content is text, a list of text parts, or None.
            add_generation_prompt: end with the header of the assistant's turn.
            tools: JSON-schema function descriptions.
            variables: whatever else the template reads (`enable_thinking`).

        Raises:
            InputError: a message is not well formed, or the template refuses it.
        """
        checked = _checked(messages)
        if "developer" not in self.source:
            for message in checked:
                if message["role"] == "developer":
                    message["role"] = "system"
        try:
            return self._template.render(
                messages=checked,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                **variables,
            )
        except jinja2.TemplateError as error:
            allowed = "must be what the model's chat template takes"
            raise InputError("messages", f"refused by the template ({error})", allowed) from None


def _environment() -> ImmutableSandboxedEnvironment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _checked(messages: Sequence[Message]) -> list[Message]:
    """Copies of the messages with text parts joined; names the one at fault."""
    if not messages:
        raise InputError("messages", "empty", "must hold at least one message")
    result = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise InputError(where, type(message).__name__, "must be an object")
        role = message.get("role")
        if role not in _ROLES:
            raise InputError(f"{where}.role", repr(role), f"allowed: {', '.join(_ROLES)}")
        content = _content(message.get("content"), f"{where}.content")
        if content is None and not message.get("tool_calls"):
            raise InputError(f"{where}.content", "missing", "must be text or a list of text parts")
        result.append({**message, "content": "" if content is None else content})
    return result


def _content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(where, type(content).__name__, "must be text or a list of text parts")
    texts = []
    for j, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InputError(f"{where}[{j}].type", repr(kind), "allowed: text")
        if not isinstance(part.get("text"), str):
            raise InputError(f"{where}[{j}].text", repr(part.get("text")), "must be a string")
        texts.append(part["text"])
    return "".join(texts)


def find_chat_template(directory: Path) -> str | None:
    """Source of a checkpoint directory's template, or None where it has none."""
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(str(path), f"not readable ({error})", "a JSON object") from None
        if isinstance(template, list):  # several named templates
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        if template is not None:
            return template
    return None
