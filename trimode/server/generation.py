"""The routes that generate: chat, plain completions, responses."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.engine import check_prompt, encode_prompt
from trimode.engine.score import score
from trimode.errors import InputError
from trimode.server.errors import fields_named
from trimode.server.frames import Answer, Echo, usage_object
from trimode.server.keys import key_check
from trimode.server.protocol import (
    ChatRequest,
    CompletionRequest,
    generation_options,
    prediction_text,
)
from trimode.server.responses import NAMES as RESPONSE_NAMES
from trimode.server.responses import Response, ResponseRequest
from trimode.server.responses import events as response_events
from trimode.server.responses import whole as whole_response
from trimode.server.service import Service
from trimode.server.streaming import DONE, line
from trimode.server.tools import AnswerForm, answer_form, told
from trimode.server.worker import Choice

_DECODING = {
    name: f"decoding.{name}" for name in ("mode", "block_length", "threshold", "revision_threshold")
}
_CHAT_NAMES = {**_DECODING, "prompt": "messages", "logprobs": "top_logprobs", "choices": "n"}


def add_routes(app: FastAPI, service: Service) -> None:
    """The three endpoints."""

    async def running() -> None:
        service.refuse_if_stopping()

    guards = [Depends(key_check(service.settings.api_keys)), Depends(running)]

    @app.post("/v1/chat/completions", dependencies=guards)
    async def chat_completions(body: ChatRequest, http: Request) -> Any:
        service.note_unknown(body.unknown)
        with fields_named(_CHAT_NAMES):
            choices, form = _chat_choices(service, body)
        reason = service.mode_reason(body, choices[0][1])
        answer = service.new_answer("chat", body.model, reason, may_call=bool(form.tools))
        names = {**_CHAT_NAMES, "grammar": form.field}
        return await service.answer(http, answer, body, choices, names)

    @app.post("/v1/responses", dependencies=guards)
    async def responses(body: ResponseRequest, http: Request) -> Any:
        service.note_unknown(body.unknown)
        with fields_named(RESPONSE_NAMES):
            choices, _ = _chat_choices(service, body.as_chat())
        response = Response(body, service.mode_reason(body, choices[0][1]))
        requests = await service.submit(
            http,
            choices,
            RESPONSE_NAMES,
            kind="chat",
            name=body.model,
            answer_id=response.id,
            stream=bool(body.stream),
        )
        timeout = service.settings.request_timeout
        if body.stream:
            lines = response_events(response, requests[0], timeout, service.settings.ping_interval)
            return service.streamed(requests, lines)
        return await service.at_once(http, requests, whole_response(response, requests[0], timeout))

    @app.post("/v1/completions", dependencies=guards)
    async def completions(body: CompletionRequest, http: Request) -> Any:
        service.note_unknown(body.unknown)
        model = service.model
        nothing = body.max_tokens == 0 and bool(body.echo)
        with fields_named(_DECODING):
            options = generation_options(
                body,
                service.settings,
                service.defaults,
                mode=service.mode_of(body.model),
                max_tokens=None if nothing else body.max_tokens,
                logprobs=body.logprobs,
            )
        prompts = [tuple(encode_prompt(model, p, raw=True)) for p in _prompts(body.prompt)]
        for prompt in prompts:
            check_prompt(model.config, prompt, room=0 if nothing else 1)
        answer = service.new_answer("text", body.model, service.mode_reason(body, options[0]))
        if body.echo:
            places = [prompt for prompt in prompts for _ in options]
            answer.echoes = await _echoes(service, answer, places, body.logprobs)
        if nothing and body.stream:
            return service.streamed([], _echo_events(answer, prompts, body))
        if nothing:
            return _only_echoes(answer, prompts)
        choices = []
        for prompt in prompts:
            choices += _fitted(prompt, options, model, body.max_tokens)
        names = {**_DECODING, "choices": "prompt" if len(prompts) > 1 else "n"}
        return await service.answer(http, answer, body, choices, names)


def _chat_choices(service: Service, body: ChatRequest) -> tuple[list[Choice], AnswerForm]:
    """What a chat request asks of the engine, and the form its answers must have."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InputError("top_logprobs", str(body.top_logprobs), "needs logprobs: true")
    model = service.model
    with fields_named({"grammar": "tools" if body.tools else "response_format"}):
        form = answer_form(
            body.tools,
            body.tool_choice,
            body.response_format,
            parallel=body.parallel_tool_calls is not False,
        )
    predicted = prediction_text(body.prediction)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    options = generation_options(
        body,
        service.settings,
        service.defaults,
        mode=service.mode_of(body.model),
        max_tokens=asked,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=form.grammar,
        prediction=tuple(model.tokenizer.encode(predicted, add_bos=False)),
    )
    template = model.chat_template.source if model.chat_template else ""
    messages = told(body.messages, form, template)
    tools = [*form.tools] or None
    prompt = tuple(encode_prompt(model, messages, tools=tools))
    return _fitted(prompt, options, model, asked), form


async def _echoes(
    service: Service, answer: Answer, prompts: list[tuple[int, ...]], logprobs: int | None
) -> dict[int, Echo]:
    """What each choice begins with."""
    found = {}
    for index, prompt in enumerate(prompts):
        text = service.model.tokenizer.decode(list(prompt))
        scores = None
        if logprobs is not None:
            scored = await service.worker.call(lambda p=prompt: score(service.model, p, logprobs))
            scores = answer.logprobs(index, prompt, scored)
        found[index] = Echo(text, scores)
    return found


def _only_echoes(answer: Answer, prompts: list[tuple[int, ...]]) -> dict[str, Any]:
    """An answer that was asked for no new token."""
    choices = [
        {"index": i, "text": echo.text, "logprobs": echo.logprobs, "finish_reason": "length"}
        for i, echo in answer.echoes.items()
    ]
    used = usage_object(sum(map(len, prompts)), 0, 0)
    return {**answer.shell(stream=False), "choices": choices, "usage": used}


async def _echo_events(
    answer: Answer, prompts: list[tuple[int, ...]], body: CompletionRequest
) -> AsyncIterator[bytes]:
    """The same as a stream."""
    whole = _only_echoes(answer, prompts)
    shell = answer.shell(stream=True)
    none = {"usage": None} if body.include_usage else {}
    for choice in whole["choices"]:
        yield line({**shell, "choices": [{**choice, "finish_reason": None}], **none})
        yield line({**answer.chunk(choice["index"], finish_reason="length"), **none})
    if body.include_usage:
        yield line({**shell, "choices": [], "usage": whole["usage"]})
    yield DONE


def _fitted(
    prompt: tuple[int, ...],
    options: list[GenerationOptions],
    model: LoadedModel,
    asked: int | None,
) -> list[Choice]:
    """Choices over a prompt; one that names no limit on tokens gets what the context leaves."""
    room = model.config.max_position_embeddings - len(prompt)
    if asked is None and room > 0:
        options = [o.updated({"max_tokens": min(o.max_tokens, room)}) for o in options]
    return [(prompt, one) for one in options]


def _prompts(prompt: str | list) -> list[str | list[int]]:
    """One prompt or a list of them, as texts or token ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise InputError("prompt", "an empty list", "must hold at least one prompt")
    return prompt
