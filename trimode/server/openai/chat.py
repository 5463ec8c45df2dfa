"""/v1/chat/completions: body, route and wire form."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import Field, StrictBool, StrictInt, StrictStr

from trimode.decoding import Committed, TokenLogprob
from trimode.errors import InputError
from trimode.server.http.errors import fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.observe.telemetry import Operation
from trimode.server.openai.answer import Answer, joined_logprobs, new_id, respond, token_rows
from trimode.server.openai.fields import DECODING_NAMES, GenerationBody
from trimode.server.openai.options import resolve_options
from trimode.server.openai.tools import answer_form, calls_in, chat_prompt, may_be_call
from trimode.server.runtime import Step
from trimode.server.service import Service

_NAMES = {**DECODING_NAMES, "prompt": "messages", "logprobs": "top_logprobs", "choices": "n"}
"""What the body calls what the engine knows under other names."""


class ChatBody(GenerationBody):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: StrictInt | None = Field(None, ge=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    """The newer name of `max_tokens`; it wins."""
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = Field(None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = True
    prediction: dict[str, Any] | None = None

    @property
    def most_tokens(self) -> int | None:
        """The limit on tokens, under whichever name it was given."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/chat/completions", dependencies=generation_guards(service))
    async def chat_completions(body: ChatBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        if body.top_logprobs is not None and not body.logprobs:
            raise InputError("top_logprobs", str(body.top_logprobs), "needs logprobs: true")
        form_field = "tools" if body.tools else "response_format"
        names = {**_NAMES, "grammar": form_field}
        with fields_named(names):
            form = answer_form(
                body.tools,
                body.tool_choice,
                body.response_format,
                parallel=body.parallel_tool_calls is not False,
            )
            resolved = resolve_options(
                service,
                body,
                max_tokens=body.most_tokens,
                logprobs=(body.top_logprobs or 0) if body.logprobs else None,
                grammar=form.grammar,
                prediction=_prediction(service, body.prediction),
            )
            prompt = chat_prompt(service.model, body.messages, form)
        answer = ChatAnswer(
            id=new_id("chatcmpl"),
            model=service.model,
            model_name=body.model,
            fingerprint=service.fingerprint,
            mode_reason=resolved.mode_reason,
            may_call=bool(form.tools),
        )
        choices = resolved.over(prompt, service.model)
        return await respond(service, http, body, answer, choices, {**names, "grammar": form.field})


@dataclass(kw_only=True)
class ChatAnswer(Answer):
    """An answer of /v1/chat/completions, as one object or in chunks."""

    object_name: ClassVar[str] = "chat.completion"
    chunk_name: ClassVar[str] = "chat.completion.chunk"
    operation: ClassVar[Operation] = "chat"

    may_call: bool = False
    """Whether a choice may turn out to be calls of tools."""
    held_text: dict[int, str | None] = field(default_factory=dict)
    """Text of each choice that may yet turn out to be a call; None once it is known to be none."""

    def chunk(
        self,
        index: int,
        text: str = "",
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A chunk of one choice."""
        delta = {"content": text} if text else {}
        return self.chunk_with(
            index, {"delta": delta}, finish_reason=finish_reason, logprobs=logprobs
        )

    def role_chunk(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice."""
        return self.chunk_with(index, {"delta": {"role": "assistant", "content": ""}})

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """The role of each choice."""
        return (self.role_chunk(index) for index in range(choices))

    def choice(
        self, index: int, text: str, finish_reason: str, logprobs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """A choice of the complete object: a message, or calls of tools."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        calls = calls_in(text) if self.may_call else []
        if calls:
            message |= {"content": None, "tool_calls": calls}
            finish_reason = "tool_calls"
        return {
            "index": index,
            "finish_reason": finish_reason,
            "logprobs": joined_logprobs(logprobs),
            "message": message,
        }

    def logprobs(
        self, index: int, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]
    ) -> dict[str, Any]:
        """Log-probabilities in chat's form."""
        del index
        return {"content": token_rows(self.model, tokens, logprobs), "refusal": None}

    def step_chunks(self, index: int, step: Step, *, show_drafts: bool) -> Iterator[dict[str, Any]]:
        """All chunks of a step; text that may belong to a call waits until that is known.

        Only a choice that begins with a call has any, so text that has been sent never waits.
        """
        held = self.held_text.get(index, "")
        if not self.may_call or held is None or not isinstance(step.update.event, Committed):
            return super().step_chunks(index, step, show_drafts=show_drafts)
        text = held + step.update.text
        ended = step.finish_reason is not None
        calls = calls_in(text) if ended and may_be_call(text) else []
        if calls:
            return self._calls(index, step, calls, show_drafts=show_drafts)
        waits = may_be_call(text) and not ended
        self.held_text[index] = text if waits else None
        step = replace(step, update=replace(step.update, text="" if waits else text))
        return super().step_chunks(index, step, show_drafts=show_drafts)

    def _calls(
        self, index: int, step: Step, calls: list[dict[str, Any]], *, show_drafts: bool
    ) -> Iterator[dict[str, Any]]:
        """The last step of a choice that consists of calls: for each its name, then arguments."""
        silent = replace(step, update=replace(step.update, text=""))
        chunk = self.step_chunk(index, silent, show_drafts=show_drafts)
        if chunk is not None:
            yield chunk
        for number, call in enumerate(calls):
            function = call["function"]
            named = {**call, "function": {"name": function["name"], "arguments": ""}}
            rest = {"function": {"arguments": function["arguments"]}}
            for part in (named, rest):
                delta = {"tool_calls": [{"index": number, **part}]}
                yield self.chunk_with(index, {"delta": delta})
        yield self.chunk(index, finish_reason="tool_calls")


def _prediction(service: Service, prediction: dict[str, Any] | None) -> tuple[int, ...]:
    """The tokens of OpenAI's `prediction`; none if there is none.

    Raises:
        InputError: it is not of type content.
    """
    if prediction is None:
        return ()
    if prediction.get("type") != "content":
        raise InputError("prediction.type", repr(prediction.get("type")), "allowed: content")
    content = prediction.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise InputError("prediction.content", repr(content), "must be text or text parts")
    return tuple(service.model.tokenizer.encode(content, add_bos=False))
