"""Rows of prompts: what a row of a user's file asks, in any of the usual forms.

`generate --input` and `bench` read the same files, and read them here.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.rows import Row, image_sources, near_miss, parse_json, read_rows

Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a conversation."""

ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "block_size": "block_length",
    "canvas_length": "block_length",
    "confidence_threshold": "threshold",
    "steps": "max_denoising_steps",
}
"""Names other programs use for our options."""
PROMPT_COLUMNS = (
    "prompt", "question", "instruction", "query", "problem", "user_prompt", "input", "text",
)  # fmt: skip
"""Names of the column that holds a text, the first one that a file has."""
REFERENCE_COLUMNS = (
    "reference", "reference_answer", "answer", "expected", "expected_answer", "expected_output",
    "ground_truth", "target", "gold", "label", "solution", "completion", "response", "output",
)  # fmt: skip
"""Names of the column that holds the right answer, the first one that a file has."""
_OPTIONS = frozenset(option.name for option in fields(GenerationOptions))
_FORM = "response_format"
_KNOWN = ("prompt", "messages", "images", _FORM, *_OPTIONS, *ALIASES)
_ENVELOPE = frozenset(("custom_id", "method", "url", "body"))
_URLS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
"""Endpoints of OpenAI's batch format, and what holds the prompt there."""
_WITHOUT_EFFECT = {
    "user": None,
    "metadata": None,
    "store": None,
    "service_tier": None,
    "stream": False,
    "n": 1,
}
"""Fields of an OpenAI body that change no answer, with the only value allowed, if only one is."""
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip
"""Who speaks in ShareGPT's form, as our roles."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a file has what is read, as far as the user says it."""

    prompt: str | None = None
    """The column of prompts or messages; by default one of the usual names."""
    reference: str | None = None
    """The column of right answers; by default one of the usual names."""
    split: str | None = None
    """The part of a data set's directory."""


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of the input file."""

    number: int
    prompt: Prompt
    options: GenerationOptions
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What the result repeats first: the id, and columns that say nothing to us."""
    raw: bool = False
    """Whether the prompt is text to go on with, whatever the command says."""
    reference: Any = None
    """The right answer; None if the row has none. Only `read_workload` looks for it."""
    form: Mapping[str, Any] | None = None
    """OpenAI's `response_format`, if the answer must be JSON; its grammar is among the options."""
    given: frozenset[str] = frozenset()
    """Options that the row itself gives."""
    images: tuple[Any, ...] = ()
    """Pictures of the prompt: paths, `data:` URLs or bytes."""


def read_lines(
    path: Path,
    defaults: GenerationOptions,
    *,
    columns: Columns = Columns(),
    is_taken: Callable[[str], bool] = lambda _: False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Line]:
    """Parse and check a file of prompts.

    Args:
        path: a file, or the directory of a data set.
        defaults: options of rows that do not give them.
        columns: where the file has what is read.
        is_taken: whether a result has a field of this name; such a column is renamed.
        say: takes notes for the user.

    Raises:
        InputError: names the file and the line.
    """
    return _Reader(path, defaults, columns, is_taken, references=False).read(say)


def lines_of(
    rows: Sequence[Row],
    defaults: GenerationOptions,
    *,
    is_taken: Callable[[str], bool] = lambda _: False,
) -> list[Line]:
    """Parse and check rows that are no file's, as `read_lines` does.

    Raises:
        InputError: names the row by its `where`.
    """
    return _Reader(Path(), defaults, Columns(), is_taken, references=False).lines(rows)


def read_workload(
    path: Path,
    defaults: GenerationOptions,
    *,
    columns: Columns = Columns(),
    say: Callable[[str], None] = lambda _: None,
) -> list[Line]:
    """The same with the right answer of each row, if it has one.

    A conversation that ends with the assistant's words is cut before them: they are the answer.

    Raises:
        InputError: names the file and the line.
    """
    return _Reader(path, defaults, columns, lambda _: False, references=True).read(say)


@dataclass(slots=True)
class _Reader:
    """Reads one file; counts what the user should be told."""

    path: Path
    defaults: GenerationOptions
    columns: Columns
    is_taken: Callable[[str], bool]
    references: bool
    prompt_column: str | None = None
    """The column that stands for `prompt` or `messages`; None if those names are used."""
    reference_column: str | None = None
    renamed: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def read(self, say: Callable[[str], None]) -> list[Line]:
        rows = list(read_rows(self.path, line_column="prompt", split=self.columns.split))
        if not rows:
            raise InputError(str(self.path), "no prompts", "needs rows with a prompt or messages")
        lines = self.lines(rows)
        if self.prompt_column is not None and self.columns.prompt is None:
            say(f"prompts are read from the column {self.prompt_column}")
        for name in sorted(self.renamed):
            say(f"column {name} has the name of a result's field: it is input_{name} in the output")
        if self.models:
            named = ", ".join(sorted(self.models))
            say(f"rows name the model {named}; the model of this command answers")
        return lines

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        names = list(dict.fromkeys(name for row in rows for name in row.fields))
        self._find_columns(names)
        lines = [self._line(row) for row in rows]
        self._refuse_twins(rows, lines)
        return lines

    def _find_columns(self, names: Sequence[str]) -> None:
        """Decide once for the whole file which columns hold prompts and right answers."""
        wanted = {"prompt_column": self.columns.prompt, "reference_column": self.columns.reference}
        for name, column in wanted.items():
            if column is not None and column not in names:
                raise InputError(name, repr(column), f"the columns are {', '.join(names)}")
        self.prompt_column = self.columns.prompt
        known = {"prompt", "messages", "conversations", "body"}
        if self.prompt_column is None and not known.intersection(names):
            self.prompt_column = _first_of(PROMPT_COLUMNS, names)
        self.reference_column = self.columns.reference
        if self.references and self.reference_column is None:
            others = [name for name in names if name != self.prompt_column]
            self.reference_column = _first_of(REFERENCE_COLUMNS, others)

    def _line(self, row: Row) -> Line:
        """One row."""
        where, given = row.where, dict(row.fields)
        columns: dict[str, Any] = {"id": given.pop("id")} if "id" in given else {}
        reference = None
        if self.reference_column is not None:
            reference = given.pop(self.reference_column, None)
            if reference is not None:
                columns[self.reference_column] = reference
        raw = False
        if "body" in given and ("custom_id" in given or "url" in given):
            given, columns, raw = _openai(given, columns, where)
        named_model = given.pop("model", None)
        if named_model is not None:
            self.models[str(named_model)] += 1
        prompt, answer = self._prompt(row, given)
        if reference is None:
            reference = answer
        form = _form(given.pop(_FORM, None), row)
        images = self._images(row, given)
        values, others = self._options(row, given)
        if form is not None:
            values["grammar"] = _grammar_of(form, row.where)
        try:
            defaults = self.defaults
            if "mode" in values:
                defaults = _for_mode(defaults, values.pop("mode"))
            options = defaults.updated(values)
        except InputError as error:
            raise InputError(f"{where}: {error.field}", error.found, error.allowed) from None
        given_options = frozenset(values) | ({"mode"} if "mode" in given else set())
        return Line(
            number=row.number,
            prompt=prompt,
            options=options,
            columns=columns | others,
            raw=raw,
            reference=reference,
            form=form,
            given=given_options,
            images=images,
        )

    def _prompt(self, row: Row, given: dict[str, Any]) -> tuple[Prompt, Any]:
        """Take the prompt out of a row, and the answer if a conversation goes on with it."""
        where = row.where
        if self.prompt_column is not None:
            value = given.pop(self.prompt_column, None)
            if self.prompt_column == "conversations":
                value = _sharegpt(value, where)
            elif row.is_text and self.prompt_column == "messages" and isinstance(value, str):
                value = parse_json(value, f"{where}: messages")
            elif _lower(self.prompt_column) == "instruction":
                value = _with_input(value, given)
            prompt, messages = (None, value) if isinstance(value, list) else (value, None)
            if prompt is None and messages is None:
                raise InputError(f"{where}: {self.prompt_column}", "missing", "needs a prompt")
        else:
            prompt, messages = given.pop("prompt", None), given.pop("messages", None)
            if row.is_text and isinstance(messages, str):
                messages = parse_json(messages, f"{where}: messages")
            if prompt is None and messages is None and "conversations" in given:
                turns = given.pop("conversations")
                if row.is_text:
                    turns = parse_json(turns, f"{where}: conversations")
                messages = _sharegpt(turns, where)
        _check_prompt(prompt, messages, where)
        return (str(prompt), None) if messages is None else self._cut(messages, where)

    def _cut(self, messages: list[dict[str, Any]], where: str) -> tuple[Prompt, Any]:
        """A conversation up to the assistant's last words, and those words."""
        if not self.references or messages[-1].get("role") != "assistant":
            return messages, None
        asked = messages[:-1]
        if not asked or asked[-1].get("role") == "assistant":
            raise InputError(f"{where}: messages", "no turn to answer", "must have a user's turn")
        return asked, messages[-1].get("content")

    def _images(self, row: Row, given: dict[str, Any]) -> tuple[Any, ...]:
        """The pictures of a row."""
        found = image_sources(given.pop("images", None), row, self.path)
        if found and self.references:
            raise InputError(f"{row.where}: images", "given", "bench measures texts alone")
        return found

    def _options(self, row: Row, given: Mapping[str, Any]) -> tuple[dict[str, object], dict]:
        """The options of a row, and its other columns."""
        values: dict[str, object] = {}
        others: dict[str, Any] = {}
        for name, value in given.items():
            option = ALIASES.get(name, name)
            if option in _OPTIONS:
                values[option] = _from_text(value) if row.is_text else value
                continue
            meant = near_miss(name, _KNOWN)
            if meant is not None and meant not in row.fields:
                raise InputError(f"{row.where}: {name}", "no such option", f"did you mean {meant}?")
            if self.is_taken(name):
                self.renamed[name] += 1
                name = f"input_{name}"
            others[name] = value
        return values, others

    def _refuse_twins(self, rows: Sequence[Row], lines: Sequence[Line]) -> None:
        ids: dict[str, str] = {}
        for row, line in zip(rows, lines, strict=True):
            name = next((k for k in ("custom_id", "id") if line.columns.get(k) is not None), None)
            if name is None:
                continue
            key = json.dumps(line.columns[name], sort_keys=True)
            if key in ids:
                found = f"{key}, as {ids[key]}"
                raise InputError(f"{row.where}: {name}", found, "each row needs its own")
            ids[key] = row.where.removeprefix(f"{self.path} ")


def _form(value: Any, row: Row) -> dict[str, Any] | None:
    """OpenAI's `response_format` of a row; None if any text will do."""
    where = f"{row.where}: {'body.' if 'body' in row.fields else ''}{_FORM}"
    if row.is_text and isinstance(value, str):
        value = parse_json(value, where)
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise InputError(where, repr(value), "type must be text, json_object or json_schema")
    if kind == "json_schema" and not isinstance(schema_of(value), dict):
        raise InputError(where, "no json_schema.schema", "must be a JSON schema")
    return None if kind == "text" else value


def schema_of(form: Mapping[str, Any]) -> Any:
    """The JSON schema of an OpenAI `response_format`; None if any JSON will do."""
    named = form.get("json_schema")
    return named.get("schema") if isinstance(named, dict) else None


def _grammar_of(form: Mapping[str, Any], where: str) -> str:
    from trimode.text.grammar import json_grammar

    try:
        return json_grammar(schema_of(form))
    except InputError as error:
        raise InputError(f"{where}: {_FORM}", error.found, error.allowed) from None


def _lower(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _first_of(usual: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has the first of the usual names; capitals do not count."""
    by_name = {_lower(name): name for name in reversed(names)}
    return next((by_name[name] for name in usual if name in by_name), None)


def _with_input(instruction: Any, given: dict[str, Any]) -> Any:
    """Alpaca's form: an instruction, and in another column what it is about."""
    name = next((name for name in given if _lower(name) == "input"), None)
    about = given.pop(name) if name is not None and isinstance(given[name], str) else None
    return f"{instruction}\n\n{about}" if about and isinstance(instruction, str) else instruction


def _sharegpt(turns: Any, where: str) -> list[dict[str, Any]]:
    """ShareGPT's turns as messages."""
    if not (isinstance(turns, list) and turns):
        raise InputError(f"{where}: conversations", repr(turns), "must be a list, not empty")
    messages = []
    for i, turn in enumerate(turns):
        place = f"{where}: conversations[{i}]"
        if not isinstance(turn, dict):
            raise InputError(place, type(turn).__name__, "must be an object")
        if "role" in turn:  # OpenAI's form under ShareGPT's name
            messages.append(turn)
            continue
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise InputError(f"{place}.from", repr(turn.get("from")), f"one of {', '.join(_ROLES)}")
        if not isinstance(turn.get("value"), str):
            raise InputError(f"{place}.value", repr(turn.get("value")), "must be a text")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def _check_prompt(prompt: Any, messages: Any, where: str) -> None:
    if (prompt is None) == (messages is None):
        found = "neither prompt nor messages" if prompt is None else "prompt and messages"
        raise InputError(where, found, "needs one of them")
    if messages is None and not (isinstance(prompt, str) and prompt):
        raise InputError(f"{where}: prompt", repr(prompt), "must be a string, not empty")
    if messages is not None and not (isinstance(messages, list) and messages):
        raise InputError(f"{where}: messages", repr(messages), "must be a list, not empty")
    for i, message in enumerate(messages or ()):
        if not isinstance(message, dict):
            found = type(message).__name__
            raise InputError(f"{where}: messages[{i}]", found, "must be an object")


def _openai(
    given: dict[str, Any], columns: dict[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The body of a row in OpenAI's batch format, the other columns, and whether it is raw text."""
    others = {name: value for name, value in given.items() if name not in _ENVELOPE}
    if others:
        raise InputError(f"{where}: {next(iter(others))}", "given", "goes into body")
    if given.get("custom_id") is not None:
        columns = {"custom_id": given["custom_id"], **columns}
    if given.get("method", "POST") != "POST":
        raise InputError(f"{where}: method", repr(given["method"]), "must be POST")
    url, body = given.get("url", "/v1/chat/completions"), given["body"]
    if url not in _URLS:
        raise InputError(f"{where}: url", repr(url), f"allowed: {', '.join(_URLS)}")
    if not isinstance(body, dict):
        raise InputError(f"{where}: body", type(body).__name__, "must be a JSON object")
    asked = _body(body, where)
    if _URLS[url] not in asked:
        raise InputError(f"{where}: body.{_URLS[url]}", "missing", f"{url} needs it")
    return asked, columns, url == "/v1/completions"


def _body(body: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a body that we read, under our names."""
    asked: dict[str, Any] = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in _WITHOUT_EFFECT:
            only = _WITHOUT_EFFECT[name]
            if only is not None and value != only:
                raise InputError(f"{where}: body.{name}", repr(value), f"must be {only!r}")
            continue
        if name not in ("model", "top_logprobs") and name not in _KNOWN:
            raise InputError(f"{where}: body.{name}", "given", "not done in a batch; remove it")
        asked[name] = value
    top = asked.pop("top_logprobs", 0)
    if isinstance(asked.get("logprobs"), bool):
        asked["logprobs"] = top if asked["logprobs"] else None
    return asked


def _from_text(value: Any) -> object:
    """What a cell of a table means as an option: a number, true, a list; else its text."""
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return {"TRUE": True, "FALSE": False}.get(value.upper(), value)


def _for_mode(defaults: GenerationOptions, mode: object) -> GenerationOptions:
    """The command's options for a line that gives its own mode: those that this mode reads."""
    from trimode.decoding import inherited

    options = defaults.updated({"mode": mode})
    return inherited(options, options.mode)
