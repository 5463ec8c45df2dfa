"""Pictures in the messages of a conversation: taken out, with a character left in their place."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimode.errors import InputError
from trimode.text.tokenizer import Tokenizer

DETAILS = ("auto", "low", "high", "original")
"""How closely a picture is to be looked at, in OpenAI's words; all but `low` mean the same."""
WHERE = "trimode_where"
"""Field of a part that says what errors call its place: protocols whose messages are not chat's."""
_ROLES = ("user", "tool")
_KINDS = ("image_url", "input_image", "image")
"""Kinds of parts: OpenAI's in chat, OpenAI's in responses, Hugging Face's."""
_PRIVATE = 0x100000
"""The first of 65,534 characters that no standard will ever define."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a conversation, as it was given."""

    source: Any
    """A URL, or whatever else stood under `image`."""
    low_detail: bool
    mark: str
    """The character that stands for it in the message's text."""
    where: str
    """Its place, as errors name it."""


def take_images(messages: Any) -> tuple[Any, tuple[ImagePart, ...]]:
    """Put a character of its own in place of each picture of a conversation.

    What is not well formed is left as it is: `checked_messages` names it.

    Returns:
        The messages, without a picture, and the pictures in their order.

    Raises:
        InputError: a part that is a picture is not well formed, or not in a user's or tool's turn.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return messages, ()
    found: list[ImagePart] = []
    marks = _unused(messages)
    taken = [_taken(message, f"messages[{i}]", found, marks) for i, message in enumerate(messages)]
    return taken, tuple(found)


def _taken(message: Any, where: str, found: list[ImagePart], marks: Iterator[str]) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple) or not any(map(_is_image, content)):
        return message
    if message.get("role") not in _ROLES:
        allowed = f"pictures stand in messages of {' or '.join(_ROLES)}"
        raise InputError(f"{where}.content", f"a picture in one of {message.get('role')}", allowed)
    parts: list[Any] = []
    for i, part in enumerate(content):
        if _is_image(part):
            image = _image(part, str(part.get(WHERE, f"{where}.content[{i}]")), next(marks))
            found.append(image)
            parts.append({"type": "text", "text": image.mark})
        else:
            parts.append(part)
    return {**message, "content": parts}


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _KINDS


def _image(part: Mapping[str, Any], where: str, mark: str) -> ImagePart:
    kind, detail = part["type"], part.get("detail")
    names = ("image", "url", "path") if kind == "image" else ("image_url",)
    name = next((name for name in names if part.get(name) is not None), names[0])
    source = part.get(name)
    if kind == "input_image" and source is None and part.get("file_id") is not None:
        raise InputError(f"{where}.file_id", "given", "nothing is stored here: send the picture")
    if isinstance(source, Mapping):
        name, detail, source = f"{name}.url", source.get("detail", detail), source.get("url")
    if source is None or (kind != "image" and not isinstance(source, str)):
        raise InputError(f"{where}.{name}", repr(source)[:80], "must be the URL of a picture")
    if detail is not None and detail not in DETAILS:
        raise InputError(f"{where}.detail", repr(detail)[:80], f"allowed: {', '.join(DETAILS)}")
    return ImagePart(source, detail == "low", mark, where)


def _unused(messages: Sequence[Any]) -> Iterator[str]:
    """Characters that stand in no text of the messages."""
    used = {c for text in _strings(messages) for c in text if ord(c) >= _PRIVATE}
    return (chr(_PRIVATE + i) for i in range(0xFFFE) if chr(_PRIVATE + i) not in used)


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value of lists and objects, one after the other."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            if not one.isascii():
                yield one
        elif isinstance(one, Mapping):
            todo.extend(one.values())
        elif isinstance(one, list | tuple):
            todo.extend(one)


def encode_marked(
    tokenizer: Tokenizer,
    text: str,
    pictures: Mapping[str, Sequence[int]],
    letters: Mapping[str, str] | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a text in which characters stand for something else.

    Args:
        tokenizer: of the model.
        text: a rendered conversation; nothing is put before it.
        pictures: the tokens of the picture that a character stands for.
        letters: the text that a character stands for, of which only the letters are meant: a
            special token in it is none.

    Returns:
        The tokens, and where those of each picture begin.

    Raises:
        InputError: the text does not show each picture once: the chat template's doing.
    """
    if not pictures:
        return tuple(_encoded(tokenizer, text, letters or {})), ()
    tokens: list[int] = []
    starts: dict[str, int] = {}
    for piece in re.split(f"([{''.join(pictures)}])", text):
        if piece not in pictures:
            tokens += _encoded(tokenizer, piece, letters or {})
        elif piece in starts:
            raise _not_shown("repeats")
        else:
            starts[piece] = len(tokens)
            tokens += pictures[piece]
    if len(starts) < len(pictures):
        raise _not_shown("leaves out")
    return tuple(tokens), tuple(starts[mark] for mark in pictures)


def _not_shown(what: str) -> InputError:
    allowed = "a template that shows each picture once"
    return InputError("messages", f"a picture that the model's chat template {what}", allowed)


def _encoded(tokenizer: Tokenizer, text: str, letters: Mapping[str, str]) -> list[int]:
    """The tokens of a text, with what some characters stand for as letters."""
    if not letters:
        return tokenizer.encode(text, add_bos=False) if text else []
    found: list[int] = []
    for i, piece in enumerate(re.split(f"([{''.join(letters)}]+)", text)):
        if i % 2:
            found += tokenizer.encode_letters("".join(letters[c] for c in piece))
        elif piece:
            found += tokenizer.encode(piece, add_bos=False)
    return found
