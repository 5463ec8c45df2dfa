"""/v1/chat/completions: body, route and wire form."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import Field, StrictBool, StrictStr

from trimode.decoding import Committed, TokenLogprob
from trimode.errors import InputError
from trimode.server.choices import resolve_options
from trimode.server.dialogue.constraints import CONSTRAINT_FIELDS, of_body
from trimode.server.dialogue.form import AnswerForm
from trimode.server.dialogue.prepare import Conversation, template_variables
from trimode.server.dialogue.reader import AnswerReader, CallBegun, Content, Part, Thought
from trimode.server.dialogue.tools import choose, read_tool
from trimode.server.http.errors import fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.observe.telemetry import Operation
from trimode.server.openai.answer import Answer, joined_logprobs, new_id, respond, token_rows
from trimode.server.openai.fields import (
    DECODING_NAMES,
    GenerationBody,
    HarmlessValues,
    Limit,
    WholeNumber,
)
from trimode.server.openai.usage import finish_reason_of
from trimode.server.runtime import Step
from trimode.server.service import Service

_NAMES = {**DECODING_NAMES, "prompt": "messages", "logprobs": "top_logprobs", "choices": "n"}
"""What the body calls what the engine knows under other names."""


class ChatBody(GenerationBody):
    """Body of /v1/chat/completions."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
        **GenerationBody.not_honoured,
        "suffix": ("",),
        "echo": (False,),
        "thinking": (),
    }

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: Limit = Field(None, ge=1)
    max_completion_tokens: Limit = Field(None, ge=1)
    """The newer name of `max_tokens`; it wins."""
    n_predict: Limit = Field(None, ge=1)
    """llama.cpp's name of it."""
    logprobs: StrictBool | None = False
    top_logprobs: WholeNumber | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = True
    prediction: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: StrictBool | None = None
    """The same as in `chat_template_kwargs`."""
    think: StrictBool | None = None
    """Ollama's name of it."""
    reasoning_effort: StrictStr | None = None
    reasoning: dict[str, Any] | None = None
    """OpenRouter's and responses' form of it: `effort`."""
    reasoning_format: StrictStr | None = None
    """llama.cpp's: where thoughts go. `none` leaves them in the text, which is not done here."""
    max_thinking_tokens: WholeNumber | None = Field(None, ge=0)
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool | None = None

    @property
    def most_tokens(self) -> int | None:
        """The limit on tokens, under whichever name it was given."""
        names = (self.max_completion_tokens, self.max_tokens, self.n_predict)
        return next((limit for limit in names if limit is not None), None)

    def conversation(self) -> Conversation:
        """What the request says.

        Raises:
            InputError: a field is not as its server defines it.
        """
        tools = tuple(read_tool(tool, f"tools[{i}]") for i, tool in enumerate(self.tools or ()))
        parallel = self.parallel_tool_calls is not False
        constraint = of_body({name: getattr(self, name) for name in CONSTRAINT_FIELDS})
        return Conversation(
            messages=self.messages,
            choice=choose(tools, self.tool_choice, parallel=parallel),
            constraint=constraint,
            variables=template_variables(
                self.chat_template_kwargs,
                self.think if self.enable_thinking is None else self.enable_thinking,
                self.reasoning_effort or (self.reasoning or {}).get("effort"),
            ),
            prefill=self.continue_final_message,
            generation_prompt=self.add_generation_prompt,
        )


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/chat/completions", dependencies=generation_guards(service))
    async def chat_completions(body: ChatBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        if body.top_logprobs is not None and not body.logprobs:
            raise InputError("top_logprobs", str(body.top_logprobs), "needs logprobs: true")
        body.refuse_unsupported()
        if body.reasoning_format == "none" and service.dialect.thinks:
            allowed = "thoughts are always in reasoning_content; leave it out, or give 'auto'"
            raise InputError("reasoning_format", "'none'", allowed)
        conversation = body.conversation()
        with fields_named(_NAMES):
            prompt, form = await service.prepare(conversation)
            given = {
                **body.given_options(),
                "max_tokens": body.most_tokens,
                "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
                "prediction": _prediction(service, body.prediction),
                "max_thinking_tokens": body.max_thinking_tokens,
            }
            choices = body.choices
            resolved = resolve_options(service, body.model, given, choices=choices, form=form)
        answer = ChatAnswer(
            id=new_id("chatcmpl-"),
            model=service.model,
            model_name=body.model or service.name,
            fingerprint=service.fingerprint,
            mode_reason=resolved.mode_reason,
            form=form,
        )
        asked = resolved.over(prompt.tokens, service.model, prompt.images)
        names = {**_NAMES, "grammar": form.field}
        return await respond(service, http, body, answer, asked, names, form.warnings)


@dataclass(kw_only=True)
class ChatAnswer(Answer):
    """An answer of /v1/chat/completions, as one object or in chunks."""

    object_name: ClassVar[str] = "chat.completion"
    chunk_name: ClassVar[str] = "chat.completion.chunk"
    operation: ClassVar[Operation] = "chat"

    form: AnswerForm = field(default_factory=AnswerForm)
    """How its text is to be read."""
    readers: "defaultdict[int, AnswerReader]" = field(init=False)
    """Of each choice."""
    begun: set[int] = field(default_factory=set)
    """Choices whose role has been sent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.readers = defaultdict(self.form.reader)

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
        """Nothing: the role leaves with the first step, so that its time is that of the model."""
        del choices
        return iter(())

    def choice(
        self, index: int, text: str, finish_reason: str, logprobs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """A choice of the complete object: a message, perhaps with thoughts and calls."""
        reader = self.form.reader()
        reader.push(text)
        reader.finish(cut_off=finish_reason == "length")
        message: dict[str, Any] = {"role": "assistant", "content": reader.content, "refusal": None}
        if reader.thought:
            message |= {"reasoning_content": reader.thought, "reasoning": reader.thought}
        if reader.calls:
            message |= {
                "content": reader.content or None,
                "tool_calls": [_call(call.id, call.name, call.arguments) for call in reader.calls],
            }
        return {
            "index": index,
            "finish_reason": _finish_reason(finish_reason, reader),
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
        """All chunks of a step: thoughts, content and calls as they are read, then the end."""
        if index not in self.begun:
            self.begun.add(index)
            yield self.role_chunk(index)
        if not isinstance(step.update.event, Committed):
            yield from super().step_chunks(index, step, show_drafts=show_drafts)
            return
        reader, ended = self.readers[index], step.finish_reason is not None
        parts = reader.push(step.update.text)
        if ended:
            parts += reader.finish(cut_off=step.finish_reason == "length")
        deltas = [_delta(part) for part in parts]
        silent = replace(step, update=replace(step.update, text=""))
        chunk = self.step_chunk(index, silent, show_drafts=show_drafts)
        if chunk is not None:
            if deltas:
                chunk["choices"][0]["delta"] = deltas.pop(0)
            yield chunk
        for delta in deltas:
            yield self.chunk_with(index, {"delta": delta})
        if step.finish_reason is not None:
            reason = _finish_reason(finish_reason_of(step.finish_reason), reader)
            yield self.chunk(index, finish_reason=reason)


def _finish_reason(reason: str, reader: AnswerReader) -> str:
    """`tool_calls` for an answer that calls, unless it was cut off."""
    return "tool_calls" if reader.calls and reason == "stop" else reason


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _delta(part: Part) -> dict[str, Any]:
    """A part of an answer as a delta."""
    if isinstance(part, Content):
        return {"content": part.text}
    if isinstance(part, Thought):
        return {"reasoning_content": part.text, "reasoning": part.text}
    if isinstance(part, CallBegun):
        return {"tool_calls": [{"index": part.index, **_call(part.id, part.name, "")}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


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
