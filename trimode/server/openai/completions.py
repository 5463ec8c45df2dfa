"""/v1/completions: body, route and wire form."""

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr

from trimode.checkpoints import LoadedModel
from trimode.decoding import TokenLogprob
from trimode.engine import check_prompt
from trimode.engine.score import score
from trimode.errors import InputError
from trimode.server.choices import resolve_options
from trimode.server.dialogue.constraints import CONSTRAINT_FIELDS, of_body
from trimode.server.dialogue.form import AnswerForm, text_form
from trimode.server.dialogue.infill import infill
from trimode.server.dialogue.prompt import tokens_of
from trimode.server.http.delivery import DONE, EventStream, event, too_late
from trimode.server.http.errors import ApiError, fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.observe.telemetry import Operation
from trimode.server.openai.answer import Answer, joined_logprobs, new_id, respond, token_rows
from trimode.server.openai.fields import DECODING_NAMES, GenerationBody, Limit, WholeNumber
from trimode.server.openai.usage import usage_object
from trimode.server.runtime import ActiveRequest
from trimode.server.service import Service
from trimode.text import Detokenizer

Prompt = str | list[int]

MOST_PROMPTS = 1024
"""Prompts of one request."""
MOST_IDS = 2**20
"""Token ids of one prompt, whatever the model's context."""


def _few(prompt: Any) -> Any:
    """Refuse a list of too many prompts before each of them is looked at."""
    if isinstance(prompt, list) and len(prompt) > MOST_PROMPTS:
        if type(prompt[0]) is not int:
            raise ValueError(f"{len(prompt)} prompts; at most {MOST_PROMPTS}")
        if len(prompt) > MOST_IDS:
            raise ValueError(f"{len(prompt)} token ids; at most {MOST_IDS}")
    return prompt


class CompletionBody(GenerationBody):
    """Body of /v1/completions."""

    prompt: Annotated[
        StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]],
        BeforeValidator(_few),
    ]
    max_tokens: Limit = Field(None, ge=0)
    """0 only with `echo`."""
    logprobs: WholeNumber | None = Field(None, ge=0, le=20)
    echo: StrictBool | None = False
    suffix: StrictStr | None = None
    """What comes after the answer, for models that fill in."""

    @property
    def only_echo(self) -> bool:
        """Whether no new token is asked for."""
        return self.max_tokens == 0 and bool(self.echo)

    def prompts(self) -> list[Prompt]:
        """The one prompt or all of them, as texts or token ids.

        Raises:
            InputError: there is none.
        """
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        if not prompt:
            raise InputError("prompt", "an empty list", "must hold at least one prompt")
        return prompt

    def form(self, service: Service) -> AnswerForm:
        """The form that the answers must have. May block."""
        constraint = of_body({name: getattr(self, name) for name in CONSTRAINT_FIELDS})
        return text_form(constraint, service.grammar_check)

    def encoded(self, service: Service) -> list[tuple[int, ...]]:
        """The tokens of the prompts. May block.

        Raises:
            InputError: one is empty or too long, or the model cannot fill in.
        """
        model, found = service.model, []
        for prompt in self.prompts():
            if self.suffix:
                tokens = infill(model, prompt, self.suffix)
            elif isinstance(prompt, str):
                tokens = tokens_of(model, prompt, add_bos=None)
            else:
                tokens = tuple(prompt)
            check_prompt(model.config, tokens, room=0 if self.only_echo else 1)
            found.append(tokens)
        return found


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/completions", dependencies=generation_guards(service))
    async def completions(body: CompletionBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        model = service.model
        body.refuse_unsupported()
        form = await service.aside(partial(body.form, service))
        with fields_named(DECODING_NAMES):
            given = {
                **body.given_options(),
                "max_tokens": None if body.only_echo else body.max_tokens,
                "logprobs": body.logprobs,
            }
            choices = body.choices
            resolved = resolve_options(service, body.model, given, choices=choices, form=form)
        prompts = await service.aside(partial(body.encoded, service))
        answer = TextAnswer(
            id=new_id("cmpl-"),
            model=model,
            model_name=body.model or service.name,
            fingerprint=service.fingerprint,
            mode_reason=resolved.mode_reason,
        )
        if body.echo:
            pairs = list(zip(body.prompts(), prompts, strict=True))
            echoed = [pair for pair in pairs for _ in range(resolved.choices)]
            await answer.add_echoes(service, http, echoed, body.logprobs)
        if body.only_echo:
            usage = usage_object(sum(map(len, prompts)), 0, 0)
            if body.stream:
                return EventStream(answer.echo_events(usage, include_usage=body.include_usage))
            return answer.echo_object(usage)
        asked = [choice for prompt in prompts for choice in resolved.over(prompt, model)]
        names = {
            **DECODING_NAMES,
            "choices": "prompt" if len(prompts) > 1 else "n",
            "grammar": form.field,
        }
        return await respond(service, http, body, answer, asked, names, form.warnings)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is part of the answer."""

    text: str
    logprobs: dict[str, Any] | None


@dataclass(kw_only=True)
class TextAnswer(Answer):
    """An answer of /v1/completions, as one object or in chunks."""

    object_name: ClassVar[str] = "text_completion"
    chunk_name: ClassVar[str] = "text_completion"
    operation: ClassVar[Operation] = "text_completion"

    echoes: dict[int, Echo] = field(default_factory=dict)
    """What each choice begins with, if the body asks for its prompt back."""
    written: "defaultdict[int, Detokenizer]" = field(init=False)
    """Makes the text of each choice's tokens once more, for text offsets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.written = defaultdict(lambda: Detokenizer(self.model.tokenizer))

    def begin(self, requests: list[ActiveRequest]) -> None:
        """Take note of what will answer."""
        super().begin(requests)
        for request in requests:
            prompt = request.sequence.prompt
            self.written[request.index] = Detokenizer(self.model.tokenizer, prompt)

    def chunk(
        self,
        index: int,
        text: str = "",
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A chunk of one choice."""
        return self.chunk_with(
            index, {"text": text}, finish_reason=finish_reason, logprobs=logprobs
        )

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """The prompts that are part of the answer."""
        del choices
        for index, echo in self.echoes.items():
            yield self.chunk(index, echo.text, logprobs=echo.logprobs)

    def choice(
        self, index: int, text: str, finish_reason: str, logprobs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """A choice of the complete object."""
        if (echo := self.echoes.get(index)) is not None:
            text = echo.text + text
            logprobs = [*([echo.logprobs] if echo.logprobs else []), *logprobs]
        return {
            "index": index,
            "finish_reason": finish_reason,
            "logprobs": joined_logprobs(logprobs),
            "text": text,
        }

    def logprobs(
        self, index: int, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]
    ) -> dict[str, Any]:
        """Log-probabilities in the form of completions, with the offsets of texts."""
        tokens = list(tokens)
        rows, progress, offsets = token_rows(self.model, tokens, logprobs), self.progress[index], []
        for token in tokens:
            offsets.append(progress.characters)
            progress.characters += len(self.written[index].push([token]))
        tops = [row["top_logprobs"] for row in rows]
        return {
            "tokens": [_spelled(row) for row in rows],
            "token_logprobs": [
                None if top is None else row["logprob"] for row, top in zip(rows, tops, strict=True)
            ],
            "top_logprobs": [None if top is None else _by_token(top) for top in tops],
            "text_offset": offsets,
        }

    async def add_echoes(
        self,
        service: Service,
        http: Request,
        prompts: list[tuple[Prompt, tuple[int, ...]]],
        logprobs: int | None,
    ) -> None:
        """Begin each choice with its prompt, scored if the answer has log-probabilities.

        Args:
            service: scores between two passes.
            http: the request. No more is scored once its client has gone.
            prompts: of the choices, as given and as tokens.
            logprobs: number of alternatives for each token; None: nothing is scored.

        Raises:
            ApiError: it takes too long.
        """
        end = time.monotonic() + service.settings.request_timeout
        for index, (given, prompt) in enumerate(prompts):
            scores = None
            if logprobs is not None:
                if time.monotonic() > end:
                    raise ApiError(408, too_late(service.settings.request_timeout))
                if await http.is_disconnected():
                    raise ApiError(499, "the client has gone")
                scored = await service.worker.call(
                    lambda p=prompt: score(service.model, p, logprobs)
                )
                self._write_specials(index, given, prompt)
                scores = self.logprobs(index, prompt, scored)
            text = given if isinstance(given, str) else _decoded(self.model, prompt)
            self.echoes[index] = Echo(text, scores)
            self.progress[index].characters = len(text)

    def _write_specials(self, index: int, given: Prompt, prompt: tuple[int, ...]) -> None:
        """Let the text of a prompt show its special tokens, but not a BOS that nobody wrote."""
        tokenizer = self.model.tokenizer
        shown = set(tokenizer.special_ids)
        first = prompt[0]
        if isinstance(given, str) and not given.startswith(tokenizer.token_text(first)):
            shown.discard(first)
        self.written[index] = Detokenizer(tokenizer, shown_special_ids=shown)

    def echo_object(self, usage: dict[str, Any]) -> dict[str, Any]:
        """An answer that was asked for no new token."""
        choices = [
            {"index": i, "text": echo.text, "logprobs": echo.logprobs, "finish_reason": "length"}
            for i, echo in self.echoes.items()
        ]
        return {**self.shell(stream=False), "choices": choices, "usage": usage}

    async def echo_events(
        self, usage: dict[str, Any], *, include_usage: bool
    ) -> AsyncIterator[bytes]:
        """The same as server-sent events."""
        no_usage = {"usage": None} if include_usage else {}
        for index, echo in self.echoes.items():
            yield event({**self.chunk(index, echo.text, logprobs=echo.logprobs), **no_usage})
            yield event({**self.chunk(index, finish_reason="length"), **no_usage})
        if include_usage:
            yield event({**self.shell(stream=True), "choices": [], "usage": usage})
        yield DONE


def _by_token(top: list[dict[str, Any]]) -> dict[str, float]:
    """The log-probabilities of alternatives by their text, the best of those that read alike."""
    found: dict[str, float] = {}
    for entry in top:
        found.setdefault(_spelled(entry), entry["logprob"])
    return found


def _spelled(entry: dict[str, Any]) -> str:
    """A token as completions name it: pieces of a character by their bytes, so that they differ."""
    try:
        return bytes(entry["bytes"]).decode() or entry["token"]
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry["bytes"])


def _decoded(model: LoadedModel, prompt: tuple[int, ...]) -> str:
    return model.tokenizer.decode(prompt, skip_special=False)
