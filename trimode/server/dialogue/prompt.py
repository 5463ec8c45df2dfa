"""The prompt of a conversation."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.engine import PromptImage, encode_pictures, image_text
from trimode.errors import ContextLengthError, InputError
from trimode.server.dialogue.call_formats import HERMES
from trimode.server.dialogue.dialect import Dialect
from trimode.server.dialogue.reader import END_THINK, THINK, ThoughtState
from trimode.server.dialogue.tools import Tool
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage

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
    images: tuple[PromptImage, ...] = ()


def chat_prompt(
    model: LoadedModel,
    dialect: Dialect,
    messages: list[Message],
    tools: tuple[Tool, ...],
    *,
    pictures: Mapping[str, ProcessedImage],
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
        pictures: by the characters that stand for them in the messages.
        variables: whatever else the template reads.
        prefill: whether the answer continues the last message. None: if it is the assistant's.
        generation_prompt: end with the header of the assistant's turn.

    Raises:
        InputError: a message is not well formed, or the prompt is too long.
    """
    if model.chat_template is None:
        raise InputError("messages", "given", f"{model.name} has no chat template; use a prompt")
    _check_size(model, messages)
    messages, letters = _disarmed(messages, model.tokenizer)
    messages, beginning = _split_prefill(messages, prefill)
    template = model.chat_template.tool_source if tools else model.chat_template.source
    if "tool_calls" not in template:
        messages = [_with_calls(message, i) for i, message in enumerate(messages)]
    offered = messages if dialect.shows_tools else _with_tools(messages, tools)
    text = model.chat_template.render(
        offered,
        tools=[tool.source for tool in tools] or None,
        add_generation_prompt=generation_prompt,
        pictures=tuple(pictures),
        image_token=image_text(model) if pictures else "",
        **variables,
    )
    if beginning is not None:
        text = _continued(text, beginning)
    check_length(model, text)
    read = encode_pictures(model, text, pictures, letters)
    shown = letters | dict.fromkeys(pictures, image_text(model) if pictures else "")
    for stand_in, spelled in shown.items():
        text = text.replace(stand_in, spelled)
    return ChatPrompt(text, read.tokens, _thought_state(text, dialect, beginning), read.images)


def _check_size(model: LoadedModel, messages: list[Message]) -> None:
    """Raise ContextLengthError if messages are too many or too long for any prompt of the model."""
    context = model.config.max_position_embeddings
    texts = _texts(messages, ("system", "developer", "user", "assistant", "tool"))
    length = sum(map(len, texts))
    if len(messages) > context:
        raise ContextLengthError.of(f"{len(messages)} messages", context)
    if length > context * _LONGEST_TOKEN:
        raise ContextLengthError.of(f"{length} characters", context)


_PRIVATE = 0xF0000
"""The first of 65,534 characters that no standard will ever define."""


def _disarmed(
    messages: list[Message], tokenizer: Tokenizer
) -> tuple[list[Message], dict[str, str]]:
    """The messages with a character in place of each special token that a stranger wrote.

    Users and tools may write the letters of `<|im_end|>`, but not end a turn with them.

    Returns:
        The messages, and what each of the characters stands for.
    """
    special = {tokenizer.token_text(i) for i in tokenizer.special_ids} - {""}
    written = "\n".join(_texts(messages, _STRANGERS))
    found = sorted((text for text in special if text in written), key=len, reverse=True)
    free = (chr(_PRIVATE + i) for i in range(0xFFFE) if chr(_PRIVATE + i) not in written)
    stand_ins = dict(zip(found, free, strict=False))
    if not stand_ins:
        return messages, {}

    def disarm(text: Any) -> Any:
        for spelled, stand_in in stand_ins.items():
            text = text.replace(spelled, stand_in) if isinstance(text, str) else text
        return text

    def changed(message: Message) -> Message:
        if message.get("role") not in _STRANGERS:
            return message
        content = message.get("content")
        if isinstance(content, list):
            parts = ({**part, "text": disarm(part.get("text"))} for part in content)
            return {**message, "content": list(parts)}
        return {**message, "content": disarm(content)}

    return [changed(message) for message in messages], {v: k for k, v in stand_ins.items()}


_STRANGERS = ("user", "tool")
"""Roles whose text is not trusted."""


def _texts(messages: list[Message], roles: tuple[str, ...]) -> Iterator[str]:
    """The texts of messages of some roles."""
    for message in messages:
        content = message.get("content") if message.get("role") in roles else None
        for part in content if isinstance(content, list) else [{"text": content}]:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text


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
        raise ContextLengthError.of(f"{len(text)} characters", context)


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
