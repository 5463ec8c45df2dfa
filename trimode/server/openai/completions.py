"""/v1/completions: body, route and wire form."""

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import Field, StrictBool, StrictInt, StrictStr

from trimode.decoding import TokenLogprob
from trimode.engine import check_prompt, encode_prompt
from trimode.engine.score import score
from trimode.errors import InputError
from trimode.server.http.delivery import DONE, EventStream, event
from trimode.server.http.errors import fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.observe.telemetry import Operation
from trimode.server.openai.answer import Answer, joined_logprobs, new_id, respond, token_rows
from trimode.server.openai.fields import DECODING_NAMES, GenerationBody
from trimode.server.openai.options import resolve_options
from trimode.server.openai.usage import usage_object
from trimode.server.service import Service


class CompletionBody(GenerationBody):
    """Body of /v1/completions."""

    prompt: StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]]
    max_tokens: StrictInt | None = Field(None, ge=0)
    """0 only with `echo`."""
    logprobs: StrictInt | None = Field(None, ge=0, le=20)
    echo: StrictBool | None = False

    @property
    def only_echo(self) -> bool:
        """Whether no new token is asked for."""
        return self.max_tokens == 0 and bool(self.echo)

    def prompts(self) -> list[str | list[int]]:
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


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/completions", dependencies=generation_guards(service))
    async def completions(body: CompletionBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        model = service.model
        with fields_named(DECODING_NAMES):
            resolved = resolve_options(
                service,
                body,
                max_tokens=None if body.only_echo else body.max_tokens,
                logprobs=body.logprobs,
            )
        prompts = [tuple(encode_prompt(model, prompt, raw=True)) for prompt in body.prompts()]
        for prompt in prompts:
            check_prompt(model.config, prompt, room=0 if body.only_echo else 1)
        answer = TextAnswer(
            id=new_id("cmpl"),
            model=model,
            model_name=body.model,
            fingerprint=service.fingerprint,
            mode_reason=resolved.mode_reason,
        )
        if body.echo:
            echoed = [prompt for prompt in prompts for _ in range(resolved.choices)]
            await answer.add_echoes(service, echoed, body.logprobs)
        if body.only_echo:
            usage = usage_object(sum(map(len, prompts)), 0, 0)
            if body.stream:
                return EventStream(answer.echo_events(usage, include_usage=body.include_usage))
            return answer.echo_object(usage)
        choices = [choice for prompt in prompts for choice in resolved.over(prompt, model)]
        names = {**DECODING_NAMES, "choices": "prompt" if len(prompts) > 1 else "n"}
        return await respond(service, http, body, answer, choices, names)


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
        rows, progress, offsets = token_rows(self.model, tokens, logprobs), self.progress[index], []
        for row in rows:
            offsets.append(progress.characters)
            progress.characters += len(row["token"])
        tops = [row["top_logprobs"] for row in rows]
        return {
            "tokens": [row["token"] for row in rows],
            "token_logprobs": [
                None if top is None else row["logprob"] for row, top in zip(rows, tops, strict=True)
            ],
            "top_logprobs": [
                None if top is None else {t["token"]: t["logprob"] for t in top} for top in tops
            ],
            "text_offset": offsets,
        }

    async def add_echoes(
        self, service: Service, prompts: list[tuple[int, ...]], logprobs: int | None
    ) -> None:
        """Begin each choice with its prompt, scored if the answer has log-probabilities."""
        for index, prompt in enumerate(prompts):
            scores = None
            if logprobs is not None:
                scored = await service.worker.call(
                    lambda p=prompt: score(service.model, p, logprobs)
                )
                scores = self.logprobs(index, prompt, scored)
            self.echoes[index] = Echo(service.model.tokenizer.decode(list(prompt)), scores)

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
