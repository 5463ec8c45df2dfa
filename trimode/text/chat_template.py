"""Chat templates: Hugging Face's Jinja conventions in a sandbox."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from trimode.errors import CheckpointError, InputError
from trimode.files import read_json_object_if_there, read_text
from trimode.text.messages import Message, checked_messages, plain_data
from trimode.text.template_sandbox import LimitedEnvironment, limited


class ChatTemplate:
    """Renders messages into the text a model was trained on.

    Args:
        source: the Jinja template.
        tool_source: the template for conversations with tools, if the model has one of its own.
        special_tokens: texts of special tokens by the names that templates use, such as
            `eos_token`.

    Raises:
        CheckpointError: a source is not a Jinja template.
    """

    def __init__(
        self, source: str, *, tool_source: str | None = None, **special_tokens: str
    ) -> None:
        self.source = source
        self.tool_source = source if tool_source is None else tool_source
        """What renders conversations with tools."""
        self.special_tokens = special_tokens
        self._templates = {text: _Template(text) for text in (self.source, self.tool_source)}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        pictures: Sequence[str] = (),
        image_token: str = "",
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: `role` and `content`. Content is text, a list of text parts, or None if the
                message has tool calls. A developer message is a system message to a template that
                does not know the role.
            add_generation_prompt: end with the header of the assistant's turn.
            tools: JSON-schema function descriptions.
            pictures: characters of the texts that stand for pictures, in their order. They are in
                the result too: where the template shows pictures, or where they stood if it does
                not know pictures.
            image_token: what a template that knows pictures writes for one.
            variables: whatever else the template reads (`enable_thinking`); JSON values.

        Raises:
            InputError: a message is not well formed, or the template refuses it.
        """
        source = self.tool_source if tools else self.source
        template = self._templates[source]
        context = {
            "bos_token": "",
            "eos_token": "",
            **self.special_tokens,
            "documents": None,
            **{name: plain_data(value, name) for name, value in variables.items()},
            "messages": checked_messages(messages),
            "tools": None if tools is None else plain_data(list(tools), "tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return template.render(context, pictures, image_token)
        except Exception as error:  # noqa: BLE001 - a template is a program and may fail in any way
            allowed = "must be what the model's chat template takes"
            raise InputError("messages", f"refused by the template ({error})", allowed) from None


_NEEDLE = "qzv"
_CONVERSATIONS: dict[str, tuple[str, ...]] = {
    "user": ("user",),
    "system": ("system", "user"),
    "assistant": ("user", "assistant", "user"),
}
"""Roles of a conversation in which a role is tried."""


class _Template:
    """One Jinja template, and which messages it reads as parts instead of text."""

    def __init__(self, source: str) -> None:
        self._environment = _environment()
        self._takes_developer = "developer" in source
        self._lock = Lock()
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError("chat_template", str(error), "a Jinja template") from None

    def render(
        self, context: dict[str, Any], pictures: Sequence[str] = (), image_token: str = ""
    ) -> str:
        """The text of a conversation; `messages` in the context are changed."""
        if pictures and self._knows_pictures(image_token):
            shown = [_with_pictures(message, pictures) for message in context["messages"]]
            text = self.render({**context, "messages": shown})
            if text.count(image_token) == len(pictures):
                marks = iter(pictures)
                first, *rest = text.split(image_token)
                return first + "".join(next(marks) + piece for piece in rest)
        for message in context["messages"]:
            if message["role"] == "developer" and not self._takes_developer:
                message["role"] = "system"
            if message["role"] in self._roles_in_parts and isinstance(message["content"], str):
                message["content"] = _parts(message["content"])
        return self._render(context)

    def _render(self, context: dict[str, Any]) -> str:
        with self._lock:  # time is counted for one rendering at a time
            self._environment.start()
            return self._template.render(context)

    @cached_property
    def _roles_in_parts(self) -> frozenset[str]:
        """Roles whose content the template reads as a list of parts, found by trying.

        A template that loops over the content shows nothing of a text, and the user's words would
        vanish. Results of tools are read as the user's words are.
        """
        found = {role for role in _CONVERSATIONS if self._wants_parts(role)}
        return frozenset(found | ({"tool"} if "user" in found else set()))

    def _wants_parts(self, role: str) -> bool:
        return not self._shows(role, as_parts=False) and self._shows(role, as_parts=True)

    def _knows_pictures(self, image_token: str) -> bool:
        """Whether the template writes the token where a message has a picture, found by trying."""
        content = [{"type": "image"}, *_parts(_NEEDLE)]
        context = {"bos_token": "", "eos_token": "", "add_generation_prompt": False}
        try:
            text = self._render({**context, "messages": [{"role": "user", "content": content}]})
        except Exception:  # noqa: BLE001 - a template is a program and may fail in any way
            return False
        return text.count(image_token) == 1 and _NEEDLE in text

    def _shows(self, role: str, *, as_parts: bool) -> bool:
        """Whether a message's text is in what the template makes of it."""
        messages: list[Message] = []
        for other in _CONVERSATIONS[role]:
            text = _NEEDLE if other == role else "x"
            messages.append({"role": other, "content": _parts(text) if as_parts else text})
        tokens = {"bos_token": "", "eos_token": ""}
        context = {**tokens, "messages": messages, "add_generation_prompt": False}
        try:
            return _NEEDLE in self._render(context)
        except Exception:  # noqa: BLE001 - a template is a program and may fail in any way
            return False


def _with_pictures(message: Message, pictures: Sequence[str]) -> Message:
    """A message with its pictures as parts of their own."""
    pieces = re.split(f"([{''.join(pictures)}])", message["content"])
    if len(pieces) == 1:
        return dict(message)
    parts = [{"type": "image"} if p in pictures else _parts(p)[0] for p in pieces if p]
    return {**message, "content": parts}


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def find_chat_templates(directory: Path) -> dict[str, str]:
    """Sources of a checkpoint directory's templates by name; empty if it has none.

    The one for plain conversations is `default`. Looks into chat_template.jinja (and the directory
    additional_chat_templates), chat_template.json and tokenizer_config.json in this order.

    Raises:
        CheckpointError: one of the files is damaged.
    """
    plain = directory / "chat_template.jinja"
    if plain.exists():
        more = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        return {"default": read_text(plain), **{path.stem: read_text(path) for path in more}}
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        templates = _templates_in(read_json_object_if_there(path), path)
        if templates:
            return templates
    return {}


def chat_template(templates: Mapping[str, str], **special_tokens: str) -> ChatTemplate | None:
    """The template of a model that has several by name; None if it has none.

    Without one that is named `default`, the first one stands in.
    """
    if not templates:
        return None
    source = templates.get("default", next(iter(templates.values())))
    return ChatTemplate(source, tool_source=templates.get("tool_use"), **special_tokens)


def _templates_in(fields: dict[str, Any], path: Path) -> dict[str, str]:
    found = fields.get("chat_template")
    if found is None:
        return {}
    entries = [{"name": "default", "template": found}] if isinstance(found, str) else found
    try:
        named = {entry["name"]: entry["template"] for entry in entries}
    except (KeyError, TypeError):
        named = {}
    if not named or not all(isinstance(x, str) for pair in named.items() for x in pair):
        allowed = "a string or a list of named templates"
        raise CheckpointError(f"{path}: chat_template", type(found).__name__, allowed)
    return named


def _environment() -> LimitedEnvironment:
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = limited(_tojson)
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        # Templates come with checkpoints. The sandbox guards neither the attributes of `dict`
        # itself nor what is stored on a namespace.
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training masks; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)  # variables set inside stay inside, as with HF


class _Namespace(Namespace):
    """Jinja's namespace without attributes that could reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # The odd signature is Jinja's: `namespace(self=1)` is allowed.
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


_LONGEST_PATTERN = 200


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _LONGEST_PATTERN:
        raise SecurityError("the template's date format is too long")
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face writes it: no HTML escapes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
