"""Reads an answer's text as it comes: thoughts, content, and calls of tools.

Whole answers and streams go through the same reader, so they say the same.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from trimode.server.dialogue.call_formats import CallFormat

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a tool; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the arguments of a call, as the model writes them."""

    index: int
    text: str


Part = Thought | Content | CallBegun | Arguments

ThoughtState = Literal["none", "may", "open"]
"""Whether an answer may begin with a thought: never; if the model opens one; it is in one."""


@dataclass(slots=True)
class ReadCall:
    """A call that has been read, perhaps cut off."""

    id: str
    name: str
    arguments: str = ""

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments as an object; None if the call was cut off."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None


class ObjectEnd:
    """Finds where a JSON object ends, in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int | None:
        """How much of the text belongs to the object if it ends in it, else None."""
        for i, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1
        return None


class AnswerReader:
    """Splits one answer into parts. Every part is final once it has been returned.

    Args:
        calls: how the model writes calls; None: it may not call.
        names: of the tools that it may call.
        thought: whether the answer may begin with a thought.
    """

    def __init__(
        self,
        calls: CallFormat | None = None,
        names: Iterable[str] = (),
        *,
        thought: ThoughtState = "none",
    ) -> None:
        self._format, self._names = calls, frozenset(names)
        self._buffer = ""
        self._state = _in_thought if thought == "open" else _at_start
        self._may_think = thought == "may"
        self._fresh = True
        """Whether nothing of the present thought or content has been returned yet."""
        self._json = ObjectEnd()
        self.thought = ""
        self.content = ""
        self.calls: list[ReadCall] = []

    def push(self, text: str) -> list[Part]:
        """The parts that a piece of text completes or continues."""
        self._buffer += text
        return self._read(final=False)

    def finish(self, *, cut_off: bool = False) -> list[Part]:
        """The parts that were held back, at the end of the answer.

        Args:
            cut_off: the answer reached a limit on tokens: what may be the beginning of a tag is
                one.
        """
        if cut_off and self._state is _in_content and self._format is not None:
            held = _possible_start(self._buffer, self._format.opening)
            self._buffer = self._buffer[: len(self._buffer) - held]
        return self._read(final=True)

    def _read(self, *, final: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            before = (self._state, len(self._buffer))
            parts += self._state(self, final)
            if before == (self._state, len(self._buffer)):
                break
        return _joined(parts)

    # What the states return, and note.

    def _thinks(self, text: str) -> list[Part]:
        if self._fresh:
            text = text.lstrip()
        if not text:
            return []
        self._fresh = False
        self.thought += text
        return [Thought(text)]

    def _says(self, text: str) -> list[Part]:
        if not text:
            return []
        self._fresh = False
        self.content += text
        return [Content(text)]

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


def _at_start(reader: AnswerReader, final: bool) -> list[Part]:
    """White space, until it is known whether a thought, a call or content follows."""
    text = reader._buffer.lstrip()
    if reader._may_think:
        if text.startswith(THINK):
            reader._buffer = text[len(THINK) :]
            reader._state, reader._may_think = _in_thought, False
            return []
        if THINK.startswith(text) and not final:
            return []
    form = reader._format
    if form is not None and not form.opening:
        return _call_or_content(reader, form, final)
    reader._state = _in_content
    return []


def _in_thought(reader: AnswerReader, final: bool) -> list[Part]:
    at = reader._buffer.find(END_THINK)
    if at >= 0:
        parts = reader._thinks(reader._take(at).rstrip())
        reader._take(len(END_THINK))
        reader._state, reader._fresh = _after_thought, True
        return parts
    if final:
        return reader._thinks(reader._take(len(reader._buffer)).rstrip())
    # White space before the end of a thought is not part of it.
    held = _possible_start(reader._buffer, END_THINK)
    whole = reader._buffer[: len(reader._buffer) - held]
    return reader._thinks(reader._take(len(whole.rstrip())))


def _after_thought(reader: AnswerReader, final: bool) -> list[Part]:
    text = reader._buffer.lstrip()
    if text or final:
        reader._buffer, reader._state = text, _at_start
    return []


def _in_content(reader: AnswerReader, final: bool) -> list[Part]:
    form = reader._format
    if form is None:
        return reader._says(reader._take(len(reader._buffer)))
    at = reader._buffer.find(form.opening)
    if at >= 0:
        text = reader._take(at)
        reader._take(len(form.opening))
        reader._state = _in_header
        return reader._says(text) if reader.content or text.strip() else []
    held = 0 if final else _possible_start(reader._buffer, form.opening)
    text = reader._buffer[: len(reader._buffer) - held]
    if not reader.content and not text.strip():
        # White space alone waits: before a call it would be content that nobody wrote.
        return reader._says(reader._take(len(text))) if final else []
    return reader._says(reader._take(len(text)))


def _call_or_content(reader: AnswerReader, form: CallFormat, final: bool) -> list[Part]:
    """The start of an answer that is a call as a whole, or content."""
    match = form.header.match(reader._buffer)
    if match and json.loads(match[1]) in reader._names:
        reader._state = _in_header
        return []
    possible = not final and not match and _may_be_header(reader, form)
    if not possible:
        reader._format, reader._state = None, _in_content
    return []


def _may_be_header(reader: AnswerReader, form: CallFormat) -> bool:
    """Whether the text may still become the header of a call of an offered tool."""
    text = reader._buffer.lstrip()
    for marker in ("", *form.markers):
        for name in reader._names:
            wanted = f'{marker}{{"name": {json.dumps(name, ensure_ascii=False)}, "parameters": '
            if wanted.startswith(text) or text.startswith(wanted):
                return True
    return False


def _in_header(reader: AnswerReader, final: bool) -> list[Part]:
    form = reader._format
    assert form is not None
    match = form.header.match(reader._buffer)
    if match is None:
        if final:  # cut off before the name was known, or not a call at all
            reader._buffer = ""
        return []
    name = _name(match[1])
    if name not in reader._names:
        reader._state = _not_a_call
        return []
    reader._take(match.end())
    call = ReadCall(form.call_id(), name)
    reader.calls.append(call)
    reader._json, reader._state = ObjectEnd(), _in_arguments
    return [CallBegun(len(reader.calls) - 1, call.id, call.name)]


def _in_arguments(reader: AnswerReader, final: bool) -> list[Part]:
    del final
    if not reader.calls[-1].arguments:
        reader._buffer = reader._buffer.lstrip()
    end = reader._json.push(reader._buffer)
    text = reader._take(len(reader._buffer) if end is None else end)
    if end is not None:
        reader._state = _after_call
    if not text:
        return []
    reader.calls[-1].arguments += text
    return [Arguments(len(reader.calls) - 1, text)]


def _after_call(reader: AnswerReader, final: bool) -> list[Part]:
    form = reader._format
    assert form is not None
    if (match := form.between.match(reader._buffer)) is not None:
        reader._take(match.end())
        reader._state = _in_header
    elif final:
        match = form.end.match(reader._buffer)
        rest = reader._take(len(reader._buffer))[match.end() if match else 0 :]
        begun = form.opening.startswith(rest)  # the next call, cut off
        return [] if begun or match is None else reader._says(rest)
    return []


def _not_a_call(reader: AnswerReader, final: bool) -> list[Part]:
    """Text between the tags of something that names no offered tool: content, without tags."""
    if not final:
        return []
    text = reader._take(len(reader._buffer))
    for marker in reader._format.markers if reader._format else ():
        text = text.replace(marker, "")
    return reader._says(text.strip())


def _name(spelled: str) -> str:
    return json.loads(spelled) if spelled.startswith('"') else spelled


def _possible_start(text: str, wanted: str) -> int:
    """Length of the longest end of a text that `wanted` may begin with."""
    for length in range(min(len(text), len(wanted) - 1), 0, -1):
        if wanted.startswith(text[-length:]):
            return length
    return 0


def _joined(parts: list[Part]) -> list[Part]:
    """The parts with neighbours of one kind in one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Thought) and isinstance(last, Thought):
            found[-1] = Thought(last.text + part.text)
        elif isinstance(part, Content) and isinstance(last, Content):
            found[-1] = Content(last.text + part.text)
        elif isinstance(part, Arguments) and isinstance(last, Arguments):
            if part.index == last.index:
                found[-1] = Arguments(part.index, last.text + part.text)
            else:
                found.append(part)
        else:
            found.append(part)
    return found
