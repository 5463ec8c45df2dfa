"""Chat templates: Hugging Face's Jinja conventions in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from trimode.errors import CheckpointError, InputError
from trimode.files import read_json_object_if_there, read_text
from trimode.text.messages import Message, checked_messages, plain_data


class ChatTemplate:
    """Renders messages into the text a model was trained on.

    Args:
        source: the Jinja template.
        special_tokens: texts of special tokens by the names that templates use, such as
            `eos_token`.

    Raises:
        CheckpointError: the source is not a Jinja template.
    """

    def __init__(self, source: str, **special_tokens: str) -> None:
        self.source = source
        self.special_tokens = special_tokens
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError("chat_template", str(error), "a Jinja template") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: `role` and `content`. Content is text, a list of text parts, or None if the
                message has tool calls. A developer message is a system message to a template that
                does not know the role.
            add_generation_prompt: end with the header of the assistant's turn.
            tools: JSON-schema function descriptions.
            variables: whatever else the template reads (`enable_thinking`); JSON values.

        Raises:
            InputError: a message is not well formed, or the template refuses it.
        """
        checked = checked_messages(messages)
        if "developer" not in self.source:
            for message in checked:
                if message["role"] == "developer":
                    message["role"] = "system"
        context = {
            "bos_token": "",
            "eos_token": "",
            **self.special_tokens,
            "documents": None,
            **{name: plain_data(value, name) for name, value in variables.items()},
            "messages": checked,
            "tools": None if tools is None else plain_data(list(tools), "tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(context)
        except Exception as error:  # noqa: BLE001 - a template is a program and may fail in any way
            allowed = "must be what the model's chat template takes"
            raise InputError("messages", f"refused by the template ({error})", allowed) from None


def find_chat_template(directory: Path) -> str | None:
    """Source of a checkpoint directory's template, or None if it has none.

    Looks into chat_template.jinja, chat_template.json and tokenizer_config.json in this order. If
    there are several named templates, it takes "default".

    Raises:
        CheckpointError: one of the files is damaged.
    """
    plain = directory / "chat_template.jinja"
    if plain.exists():
        return read_text(plain)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        template = _template_in(read_json_object_if_there(path), path)
        if template is not None:
            return template
    return None


def _template_in(fields: dict[str, Any], path: Path) -> str | None:
    template = fields.get("chat_template")
    try:
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
    except (KeyError, TypeError) as error:
        raise CheckpointError(str(path), f"not readable ({error})", "named templates") from None
    if template is not None and not isinstance(template, str):
        found = f"chat_template is {type(template).__name__}"
        raise CheckpointError(str(path), found, "a string or a list of named templates")
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
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


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
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
