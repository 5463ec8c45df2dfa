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
_IMAGE_FIELDS = ("image", "url", "path")
"""Where Hugging Face's form has the picture."""
_PRIVATE = 0x100000
"""The first of 65,534 characters that no standard will ever define."""
_MARKS = re.compile(f"[{chr(_PRIVATE)}-{chr(_PRIVATE + 0xFFFD)}]")


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


def with_images(messages: Sequence[Any], images: Sequence[Any]) -> list[Any]:
    """A conversation with pictures that are given beside it.

    They take the places of parts `{"type": "image"}` that hold none, in their order; without such
    parts they stand before the text of the user's first turn.

    Raises:
        InputError: there are as many places and not as many pictures.
    """
    places = sum(_is_place(part) for message in messages for part in _parts_of(message))
    if places and places != len(images):
        found = f"{len(images)} beside messages with places for {places}"
        raise InputError("images", found, "one for each place")
    rest = iter(images)
    if places:
        return [
            {**message, "content": [_filled(part, rest) for part in _parts_of(message)]}
            if any(map(_is_place, _parts_of(message)))
            else message
            for message in messages
        ]
    first = next((i for i, m in enumerate(messages) if _role(m) == "user"), None)
    if first is None:
        raise InputError("images", "given", "the messages need a turn of the user")
    content = messages[first].get("content") or ""
    text = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    shown = [{"type": "image", "image": image} for image in rest]
    return [*messages[:first], {**messages[first], "content": shown + text}, *messages[first + 1 :]]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _parts_of(message: Any) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _is_place(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return False
    return all(part.get(name) is None for name in _IMAGE_FIELDS)


def _filled(part: Any, images: Iterator[Any]) -> Any:
    return {**part, "image": next(images)} if _is_place(part) else part


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
    names = _IMAGE_FIELDS if kind == "image" else ("image_url",)
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
    used = {c for text in _strings(messages) for c in _MARKS.findall(text)}
    yield from (chr(_PRIVATE + i) for i in range(0xFFFE) if chr(_PRIVATE + i) not in used)


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
