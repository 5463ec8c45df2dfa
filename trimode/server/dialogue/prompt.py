"""The prompt of a conversation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.errors import ContextLengthError, InputError
from trimode.server.dialogue.call_formats import HERMES
from trimode.server.dialogue.dialect import Dialect
from trimode.server.dialogue.reader import END_THINK, THINK, ThoughtState
from trimode.server.dialogue.tools import Tool

Message = dict[str, Any]

_PREAMBLE = (
    "You may call these functions. To call one, answer with a JSON object between tags:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>\n'
)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What the model reads before it answers."""

    text: str
    tokens: tuple[int, ...]
    thought: ThoughtState
    """Whether the answer may begin with a thought, or is in one already."""


def chat_prompt(
    model: LoadedModel,
    dialect: Dialect,
    messages: list[Message],
    tools: tuple[Tool, ...],
    *,
    variables: Mapping[str, Any],
    prefill: bool | None,
    generation_prompt: bool = True,
) -> ChatPrompt:
    """The prompt of a conversation, with the tools that may be called. May block.

    Args:
        model: has the template and the tokenizer.
        dialect: of the model.
        messages: of the conversation.
        tools: that the template shows.
        variables: whatever else the template reads.
        prefill: whether the answer continues the last message. None: if it is the assistant's.
        generation_prompt: end with the header of the assistant's turn.

    Raises:
        InputError: a message is not well formed, or the prompt is too long.
    """
    if model.chat_template is None:
        raise InputError("messages", "given", f"{model.name} has no chat template; use a prompt")
    messages, beginning = _split_prefill(messages, prefill)
    template = model.chat_template.tool_source if tools else model.chat_template.source
    if "tool_calls" not in template:
        messages = [_with_calls(message, i) for i, message in enumerate(messages)]
    shown = messages if dialect.shows_tools else _with_tools(messages, tools)
    text = model.chat_template.render(
        shown,
        tools=[tool.source for tool in tools] or None,
        add_generation_prompt=generation_prompt,
        **variables,
    )
    if beginning is not None:
        text = _continued(text, beginning)
    return ChatPrompt(text, tokens_of(model, text), _thought_state(text, dialect, beginning))


def tokens_of(model: LoadedModel, text: str, *, add_bos: bool | None = False) -> tuple[int, ...]:
    """The tokens of a text, unless it is much too long: that is refused before the work.

    Raises:
        InputError: it cannot fit the model's context.
    """
    check_length(model, text)
    return tuple(model.tokenizer.encode(text, add_bos=add_bos))


_LONGEST_TOKEN = 128
"""Characters of the longest tokens of vocabularies, which are runs of spaces."""


def check_length(model: LoadedModel, text: str) -> None:
    """Raise InputError if a text has more characters than any prompt of the model."""
    context = model.config.max_position_embeddings
    if len(text) > context * _LONGEST_TOKEN:
        allowed = f"this model's maximum context length is {context} tokens, the answer included"
        raise ContextLengthError("prompt", f"{len(text)} characters", allowed)


def _split_prefill(
    messages: list[Message], prefill: bool | None
) -> tuple[list[Message], Message | None]:
    """The messages, and the beginning of the answer if the last one is it."""
    last = messages[-1] if messages else {}
    possible = isinstance(last, dict) and last.get("role") == "assistant"
    possible = possible and not last.get("tool_calls")
    if prefill and not possible:
        allowed = "the last message must be the assistant's, without tool_calls"
        raise InputError("continue_final_message", "true", allowed)
    if prefill is False or not possible or len(messages) == 1:
        return messages, None
    return messages[:-1], last


def _continued(text: str, beginning: Message) -> str:
    content = beginning.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise InputError("messages", type(content).__name__, "content must be text or text parts")
    if text.rstrip().endswith(THINK):  # the template opens a thought; the answer comes after it
        thought = beginning.get("reasoning_content") or beginning.get("reasoning") or ""
        text += f"{thought}\n{END_THINK}\n\n"
    return text + content


def _thought_state(text: str, dialect: Dialect, beginning: Message | None) -> ThoughtState:
    end = text.rstrip()
    if end.endswith(THINK) and dialect.thinks:
        return "open"
    if not dialect.thinks or beginning is not None or end.endswith(END_THINK):
        return "none"
    return "may"


def _with_tools(messages: list[Message], tools: tuple[Tool, ...]) -> list[Message]:
    """The messages, with a list of the tools in the system message."""
    if not tools:
        return messages
    listed = "\n".join(json.dumps(tool.source["function"], ensure_ascii=False) for tool in tools)
    text = _PREAMBLE + listed
    first = messages[0]
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_calls(message: Message, index: int) -> Message:
    """A message with its calls as text, as the model writes them."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not calls:
        return message
    content = message.get("content") or ""
    if not isinstance(content, str):
        allowed = "must be text if there are tool_calls"
        raise InputError(f"messages[{index}].content", "parts", allowed)
    texts = [content] if content else []
    for call in calls:
        function = call["function"]
        written = {"name": function["name"], "arguments": function["arguments"]}
        body = json.dumps(written, ensure_ascii=False)
        texts.append(f"{HERMES.opening}\n{body}\n</tool_call>")
    return {**message, "content": "\n".join(texts)}
