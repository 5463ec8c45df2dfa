"""The form of an answer: the grammar that holds it, and the reader that takes it apart."""

import json
import re
import time
from dataclasses import dataclass

from llguidance import regex_to_lark

from trimode.errors import InputError
from trimode.server.dialogue.call_formats import CallFormat
from trimode.server.dialogue.constraints import Constraint
from trimode.server.dialogue.reader import END_THINK, THINK, AnswerReader, ThoughtState
from trimode.server.dialogue.schemas import (
    Schema,
    arguments_schema,
    documented,
    without_impossible_patterns,
    without_nulls,
)
from trimode.server.dialogue.tools import Tool, ToolChoice
from trimode.text.grammar_check import GrammarCheck

_ANY = "(?s:.*)"
"""Any text, as a regular expression."""

_FREE: Schema = {"type": "object"}


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form that an answer must have."""

    grammar: str | None = None
    calls: CallFormat | None = None
    """How it may call tools; None: it may not."""
    names: tuple[str, ...] = ()
    """Of the tools that it may call."""
    thought: ThoughtState = "none"
    field: str = "response_format"
    """The body field that asks for the grammar."""
    warnings: tuple[str, ...] = ()
    """What of the request's schemas is not enforced."""

    @property
    def shows_special(self) -> bool:
        """Whether the text must show the special tokens of thoughts and calls."""
        return self.calls is not None or self.thought != "none"

    def reader(self) -> AnswerReader:
        """A reader for one answer."""
        return AnswerReader(self.calls, self.names, thought=self.thought)


def answer_form(
    choice: ToolChoice,
    constraint: Constraint | None,
    calls: CallFormat | None,
    thought: ThoughtState,
    check: GrammarCheck,
) -> AnswerForm:
    """The form that a request asks for. May block: run it off the event loop.

    Args:
        choice: tools that may or must be called.
        constraint: what the text must fit if it is no call.
        calls: how the model writes calls.
        thought: whether the answer may begin with a thought. A form begins after it.
        check: tries the grammars.

    Raises:
        InputError: a schema or grammar is refused; names the field.
    """
    if not choice.offered and constraint is None:
        return AnswerForm(thought=thought)
    writer = _Writer(check)
    field = "tools" if choice.offered else constraint.field if constraint else "grammar"
    if constraint is not None and not choice.forced:
        writer.constrain(constraint)
    if choice.offered:
        if calls is None:
            allowed = "this model's chat template writes calls in a form that is not supported"
            raise InputError("tools", "given", allowed)
        writer.allow(choice, calls)
    source = writer.source(thought, forced=choice.forced)
    writer.checked(source, field)
    return AnswerForm(
        grammar=source,
        calls=calls if choice.offered else None,
        names=tuple(tool.name for tool in choice.offered),
        thought=thought,
        field=field,
        warnings=tuple(writer.warnings),
    )


def text_form(constraint: Constraint | None, check: GrammarCheck) -> AnswerForm:
    """The form of a text that continues a prompt: it neither calls nor thinks. May block.

    Raises:
        InputError: a schema or grammar is refused; names the field.
    """
    return answer_form(ToolChoice(), constraint, None, "none", check)


class _Writer:
    """Writes the grammar of one form, in Lark."""

    def __init__(self, check: GrammarCheck) -> None:
        self._check, self._until = check, time.monotonic() + check.seconds
        self._rules: list[str] = []
        self._other: list[dict[str, str]] = []
        """Grammars that users wrote."""
        self._constrained = False
        self._calls: CallFormat | None = None
        self._after = ""
        self._names: tuple[str, ...] = ()
        self.warnings: list[str] = []

    def constrain(self, constraint: Constraint) -> None:
        """Hold the text of the answer to a constraint."""
        self._constrained = True
        value = constraint.value
        if constraint.kind == "json":
            document = self._schema(value, constraint.field, "", strict=constraint.strict)
            self._rules.append(f"answer: %json {json.dumps(document)}")
        elif constraint.kind == "regex":
            self._rules.append(f"answer: /{_in_lark(value)}/")
        elif constraint.kind == "choice":
            texts = (json.dumps(text, ensure_ascii=False) for text in value)
            self._rules.append(f"answer: {' | '.join(texts)}")
        else:
            self._rules.append("answer: @user")
            self._other.append({"name": "user", "lark_grammar": value})
        if constraint.kind != "json":
            grammar = _grammars("\n".join(["start: answer", *self._rules]), self._other)
            self.checked(grammar, constraint.field)

    def allow(self, choice: ToolChoice, calls: CallFormat) -> None:
        """Let the answer call tools."""
        self._calls = calls
        self._names = tuple(tool.name for tool in choice.offered)
        found = calls.grammar(self._names, parallel=choice.parallel)
        self._after = found.after_opening
        self._rules += found.rules
        for i, tool in enumerate(choice.offered):
            document = self._arguments(tool)
            self._rules.append(f"arguments_{i}: %json {json.dumps(document)}")

    def source(self, thought: ThoughtState, *, forced: bool) -> str:
        """The grammar."""
        rules, body = self._body(thought, forced=forced)
        if thought == "none":
            start = [f"start: {body}"]
        else:
            begin = "" if thought == "open" else f'"{THINK}" '
            start = [f"start: {begin}thought gap {body}", *_THOUGHT]
            if thought == "may":
                start[0] += f" | {body}"
            if not forced and not self._constrained:  # what ends in a thought is right too
                start[0] += f" | {begin}unfinished"
                closed = f"{_ANY}{re.escape(END_THINK)}{_ANY}"
                start.append(f"unfinished: UNFINISHED\nUNFINISHED: {_without(_ANY, [closed])}")
        return _grammars("\n".join([*start, *rules, *self._rules]), self._other)

    def checked(self, grammar: str, field: str) -> list[str]:
        """What of a grammar is not enforced.

        Raises:
            InputError: it is refused.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise InputError(field, f"takes more than {self._check.seconds:g} seconds", "simplify")
        try:
            return self._check.check(grammar, seconds=left)
        except InputError as error:
            raise InputError(field, error.found, error.allowed) from None

    def _body(self, thought: ThoughtState, *, forced: bool) -> tuple[list[str], str]:
        """Rules of all that follows a thought, and their expression."""
        calls = self._calls
        if calls is None:
            return [], "answer"
        whole = f"{json.dumps(calls.opening)} {self._after}" if calls.opening else self._after
        if forced:
            return [], f"({whole})"
        if self._constrained:
            return [], f"(answer | {whole})"
        forbidden = [] if thought == "none" else [f"{re.escape(THINK)}{_ANY}"]
        if not calls.opening:
            names = "|".join(re.escape(json.dumps(n, ensure_ascii=False)) for n in self._names)
            marker = "".join(f"({re.escape(m)})?" for m in calls.markers)
            forbidden.append(f'\\s*{marker}\\{{"name": ({names}), "parameters": {_ANY}')
            return [f"prose: PROSE\nPROSE: {_without(_ANY, forbidden)}"], f"(prose | {whole})"
        head = _without(f"{_ANY}{re.escape(calls.opening)}", forbidden)
        rules = [
            f"prose: PROSE\nPROSE: {_without(_ANY, forbidden)}",
            f"head[lazy]: HEAD\nHEAD: {head}",
        ]
        return rules, f"(prose | head {self._after})"

    def _arguments(self, tool: Tool) -> Schema:
        place = f"{tool.field}.parameters"
        try:
            schema = arguments_schema(tool.parameters, place)
            return self._schema(schema, place, f"tool {tool.name}: ", strict=tool.strict)
        except InputError as error:
            if tool.strict or time.monotonic() > self._until:
                raise
            # One tool that cannot be enforced must not cost the others.
            self.warnings.append(f"tool {tool.name}: its schema is not enforced ({error.found})")
            return documented(_FREE, lenient=False)

    def _schema(self, schema: Schema, field: str, whose: str, *, strict: bool) -> Schema:
        """The schema as far as it can be enforced.

        Raises:
            InputError: it is not valid, or it is strict and cannot be enforced whole.
        """
        dropped: list[str] = []
        schema = without_nulls(schema)
        if not strict:
            schema, dropped = without_impossible_patterns(schema)
        document = documented(schema, lenient=not strict)
        grammar = _grammars(f"start: %json {json.dumps(document)}", [])
        try:
            missing = [*dropped, *self.checked(grammar, field)]
        except InputError as error:
            found = f"{whose}{error.found.removeprefix(_PREFIX)}"
            allowed = "leave the keyword or strict out" if strict else "must be a JSON schema"
            raise InputError(field, found, allowed) from None
        where = whose.removesuffix(": ") or field
        self.warnings += [f"{where}: not enforced: {one}" for one in missing]
        return document


_PREFIX = "at 1(8): failed to compile JSON schema: "
"""What the library says before the fault of a schema that stands alone."""

_THOUGHT = [
    "thought[lazy]: THOUGHT",
    f"THOUGHT: /{_ANY}{re.escape(END_THINK).replace('/', chr(92) + '/')}/",
    "gap: /\\n{0,2}/",
]


def _without(pattern: str, forbidden: list[str]) -> str:
    """A terminal for texts that match a pattern and none of the others."""
    return " & ".join([f"/{_slashed(pattern)}/", *(f"~/{_slashed(one)}/" for one in forbidden)])


def _slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"(?<!\\)/", r"\\/", pattern)


def _in_lark(pattern: str) -> str:
    """A user's regular expression, from end to end, as it stands between slashes."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    return regex_to_lark(pattern, "d")


def _grammars(main: str, others: list[dict[str, str]]) -> str:
    return json.dumps({"grammars": [{"lark_grammar": main}, *others]})
