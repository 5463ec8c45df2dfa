"""Ollama's API, as far as its official client uses it without managing models.

The form is that of Ollama's docs/api.md.
"""

import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StrictBool, StrictStr
from pydantic_core import to_json

from trimode.config import MODES
from trimode.errors import InputError
from trimode.server.choices import Turn, begin_turn, mode_suffix, start_turn
from trimode.server.dialogue.constraints import Constraint, of_response_format
from trimode.server.dialogue.follow import Ended, follow, whole
from trimode.server.dialogue.form import text_form
from trimode.server.dialogue.infill import infill
from trimode.server.dialogue.prepare import EFFORTS, Conversation
from trimode.server.dialogue.prompt import ChatPrompt, tokens_of
from trimode.server.dialogue.reader import Content, Thought
from trimode.server.dialogue.tools import ToolChoice, read_tool
from trimode.server.http.delivery import EventStream, send_object, too_late, warning_header
from trimode.server.http.errors import fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.openai.answer import new_id
from trimode.server.openai.fields import DECODING_NAMES, Body, HarmlessValues, stop_strings
from trimode.server.runtime import EngineFailedError
from trimode.server.service import Service
from trimode.text import WHERE

PATHS = "/api/"
API_VERSION = "0.12.0"
"""The version of Ollama whose API this is; clients refuse servers that are too old."""

_NAMES = {
    **DECODING_NAMES,
    "prompt": "messages",
    "max_tokens": "options.num_predict",
    "max_thinking_tokens": "think",
}

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Ollama's options by the fields of `GenerationOptions`."""
_OPTIONS_NOT_HONOURED: dict[str, HarmlessValues] = {
    "mirostat": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
}
_WHOLE = ("num_predict", "top_k", "seed")
_NOT_HERE = ("pull", "push", "create", "copy", "delete", "embed", "embeddings", "blobs/{digest}")
"""What manages models, or needs another kind of model."""


def error_object(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Ollama's error object."""
    del status, code
    return {"error": message}


class OllamaBody(Body):
    """The fields of /api/chat and /api/generate."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
        "logprobs": (False,),
        "top_logprobs": (0,),
    }
    without_effect: ClassVar[frozenset[str]] = Body.without_effect | {"keep_alive"}
    """The model stays loaded as long as the server runs."""

    stream: StrictBool | None = True
    format: Any = None
    options: dict[str, Any] | None = None
    think: StrictBool | StrictStr | None = None

    @property
    def constraint(self) -> Constraint | None:
        """What `format` asks for: `json`, or a JSON schema."""
        if self.format in (None, ""):
            return None
        if self.format == "json":
            return of_response_format({"type": "json_object"}, "format")
        if not isinstance(self.format, dict):
            raise InputError("format", repr(self.format)[:80], "must be json or a JSON schema")
        return Constraint("json", self.format, "format")

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template reads of `think`: a switch, or how much to think."""
        if self.think is None:
            return {}
        if isinstance(self.think, bool):
            return {"enable_thinking": self.think}
        if self.think not in EFFORTS:
            raise InputError("think", repr(self.think), f"true, false, {', '.join(EFFORTS)}")
        return {"enable_thinking": self.think != "none", "reasoning_effort": self.think}

    def given_options(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that the body gives."""
        found = {**super().given_options()}
        for name, value in (self.options or {}).items():
            if value is None:
                continue
            if name in _OPTIONS_NOT_HONOURED and value not in _OPTIONS_NOT_HONOURED[name]:
                raise InputError(f"options.{name}", repr(value), "this server does not support it")
            if name not in _OPTIONS:
                continue  # of Ollama's runner: threads, layers on a GPU
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"options.{name}", repr(value)[:80], "must be a number")
            if name in _WHOLE:
                value = int(value)
            if name in ("num_predict", "top_k", "seed") and value < 0:
                continue  # no limit, any seed
            found[_OPTIONS[name]] = value
        if found.get("top_p") == 0:
            found["top_p"] = 1e-9
        stop = (self.options or {}).get("stop")
        if not isinstance(stop, str | list | None) or not all(
            isinstance(s, str) for s in stop or ()
        ):
            raise InputError("options.stop", repr(stop)[:80], "must be texts")
        found["stop"] = stop_strings(stop, "options.stop")
        return found


class OllamaChatBody(OllamaBody):
    """Body of /api/chat."""

    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None


class GenerateBody(OllamaBody):
    """Body of /api/generate."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
        **OllamaBody.not_honoured,
        "context": ([],),
        "template": ("",),
    }

    prompt: StrictStr | None = None
    suffix: StrictStr | None = None
    images: list[StrictStr] | None = None
    system: StrictStr | None = None
    raw: StrictBool | None = False


class ShowBody(BaseModel):
    """Body of /api/show."""

    model: StrictStr | None = None
    name: StrictStr | None = None
    """The older name of `model`."""


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    guards = generation_guards(service)

    @app.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": API_VERSION}

    @app.get("/api/tags")
    async def tags() -> dict[str, Any]:
        return {"models": _cards(service)}

    @app.get("/api/ps")
    async def running() -> dict[str, Any]:
        more = {
            "expires_at": "9999-12-31T23:59:59Z",
            "size_vram": 0,
            "context_length": service.model.config.max_position_embeddings,
        }
        return {"models": [{**card, **more} for card in _cards(service)[:1]]}

    @app.head("/", include_in_schema=False)
    async def alive() -> None:
        """What Ollama's command line asks first."""

    @app.post("/api/show")
    async def show(body: ShowBody) -> dict[str, Any]:
        mode_suffix(service, body.model or body.name)
        return _shown(service)

    @app.post("/api/chat", dependencies=guards)
    async def chat(body: OllamaChatBody, http: Request) -> Any:
        body.refuse_unsupported()
        if not body.messages:
            return _loaded(service, body, {"message": {"role": "assistant", "content": ""}})
        tools = tuple(read_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ()))
        conversation = Conversation(
            messages=[_message(message, i) for i, message in enumerate(body.messages)],
            choice=ToolChoice(tools),
            constraint=body.constraint,
            variables=body.variables,
        )
        with fields_named(_NAMES):
            turn = await begin_turn(
                service,
                conversation,
                body.model,
                body.given_options(),
                answer_id=new_id("ollama-"),
                headers=http.headers,
                stream=bool(body.stream),
            )
        return await _respond(service, http, body, ChatLines(body.model or service.name, turn))

    @app.post("/api/generate", dependencies=guards)
    async def generate(body: GenerateBody, http: Request) -> Any:
        body.refuse_unsupported()
        if not body.prompt:
            return _loaded(service, body, {"response": ""})
        with fields_named({**_NAMES, "messages": "prompt", "prompt": "prompt"}):
            turn = await _generation(service, body, http)
        return await _respond(service, http, body, TextLines(body.model or service.name, turn))

    async def not_here() -> JSONResponse:
        message = "models are not managed here: start the server with the model you want"
        return JSONResponse(error_object(501, message), 501)

    for name in _NOT_HERE:
        methods = ["POST", "DELETE", "HEAD"]
        app.add_api_route(f"/api/{name}", not_here, methods=methods, include_in_schema=False)


async def _generation(service: Service, body: GenerateBody, http: Request) -> Turn:
    """An answer to a prompt: raw, filled in, or as a user's turn."""
    given = {"headers": http.headers, "answer_id": new_id("ollama-"), "stream": bool(body.stream)}
    model = service.model
    if not body.raw and not body.suffix and model.chat_template is not None:
        messages = [{"role": "system", "content": body.system}] if body.system else []
        content: Any = body.prompt
        if body.images:
            content = _with_images(body.prompt or "", body.images, "images")
        conversation = Conversation(
            messages=[*messages, {"role": "user", "content": content}],
            constraint=body.constraint,
            variables=body.variables,
        )
        return await begin_turn(service, conversation, body.model, body.given_options(), **given)
    if body.images:
        raise InputError("images", "given", "only with a chat template, without raw or suffix")
    text = body.prompt or ""
    if body.suffix:
        tokens = await service.aside(lambda: infill(model, text, body.suffix or ""))
    else:
        tokens = await service.aside(lambda: tokens_of(model, text, add_bos=None))
    form = await service.aside(lambda: text_form(body.constraint, service.grammar_check))
    return await start_turn(
        service,
        ChatPrompt(text, tokens, "none"),
        form,
        body.model,
        body.given_options(),
        operation="text_completion",
        **given,
    )


def _message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message in OpenAI's terms: pictures stand before its text, `thinking` is a thought."""
    known = {name: value for name, value in message.items() if value is not None}
    images = known.pop("images", None)
    known.setdefault("content", "")
    if images:
        known["content"] = _with_images(known["content"], images, f"messages[{index}].images")
    return known


def _with_images(text: str, images: Any, where: str) -> list[dict[str, Any]]:
    """A message's content with pictures in base64 before the text."""
    if not isinstance(images, list):
        raise InputError(where, repr(images)[:80], "must be a list of pictures in base64")
    parts = [
        {"type": "image_url", "image_url": image, WHERE: f"{where}[{i}]"}
        for i, image in enumerate(images)
    ]
    return [*parts, {"type": "text", "text": text}]


class ChatLines:
    """Lines of /api/chat."""

    def __init__(self, model_name: str, turn: Turn) -> None:
        self.model_name, self.turn = model_name, turn

    def said(self, content: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """What an object says."""
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    def object(self, said: dict[str, Any], ended: Ended | None) -> dict[str, Any]:
        """A line, or the whole answer."""
        found = {"model": self.model_name, "created_at": _now(), **said, "done": ended is not None}
        return found if ended is None else {**found, **self._figures(ended)}

    async def whole(self, timeout: float) -> dict[str, Any]:
        """The answer as one object.

        Raises:
            TimeoutError: it is not finished in time.
        """
        ended = await whole(self.turn.request, self.turn.form, timeout)
        reader = ended.reader
        return self.object(self.said(reader.content, reader.thought, _calls(ended)), ended)

    async def lines(self, timeout: float) -> AsyncIterator[bytes]:
        """JSON objects, one a line."""
        try:
            async for found in follow(self.turn.request, self.turn.form, timeout, float("inf")):
                if isinstance(found, Content):
                    yield _line(self.object(self.said(found.text, "", []), None))
                elif isinstance(found, Thought):
                    yield _line(self.object(self.said("", found.text, []), None))
                elif isinstance(found, Ended):
                    if calls := _calls(found):
                        yield _line(self.object(self.said("", "", calls), None))
                    yield _line(self.object(self.said("", "", []), found))
        except (TimeoutError, EngineFailedError) as error:
            yield _line(error_object(500, str(error) or too_late(timeout)))

    def _figures(self, ended: Ended) -> dict[str, Any]:
        """How the answer ended, and durations in nanoseconds."""
        request = self.turn.request
        stats, now = request.sequence.stats, time.monotonic()
        began, finished = stats.admitted_at or now, stats.finished_at or now
        first = stats.first_token_at or finished
        return {
            "done_reason": "length" if ended.cut_off else "stop",
            "total_duration": _nanoseconds(finished - request.arrived),
            "load_duration": 0,
            "prompt_eval_count": len(request.sequence.prompt),
            "prompt_eval_duration": _nanoseconds(first - began),
            "eval_count": stats.completion_tokens,
            "eval_duration": _nanoseconds(finished - first),
        }


class TextLines(ChatLines):
    """Lines of /api/generate."""

    def said(self, content: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """What an object says."""
        del calls
        return {"response": content, **({"thinking": thinking} if thinking else {})}


async def _respond(service: Service, http: Request, body: OllamaBody, lines: ChatLines) -> Response:
    timeout = service.settings.request_timeout
    request = lines.turn.request
    free = partial(service.cancel, [request])
    headers = warning_header(lines.turn.form.warnings)
    if not body.stream:
        return await send_object(http, lines.whole(timeout), timeout, free, headers=headers)
    return EventStream(
        lines.lines(timeout),
        request.channel,
        free,
        headers=headers,
        media_type="application/x-ndjson",
    )


def _calls(ended: Ended) -> list[dict[str, Any]]:
    """The complete calls of an answer."""
    return [
        {"id": call.id, "function": {"name": call.name, "arguments": arguments}}
        for call in ended.reader.calls
        if (arguments := call.parsed) is not None
    ]


def _loaded(service: Service, body: OllamaBody, said: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request without a prompt, which asks only that the model is loaded."""
    mode_suffix(service, body.model)
    name = body.model or service.name
    return {"model": name, "created_at": _now(), **said, "done": True, "done_reason": "load"}


def _cards(service: Service) -> list[dict[str, Any]]:
    """The model, once for each name: bare, and with each mode."""
    created = datetime.fromtimestamp(service.created, UTC).isoformat()
    names = [service.name, *(f"{service.name}:{mode}" for mode in MODES)]
    return [
        {
            "name": name,
            "model": name,
            "modified_at": created,
            "size": service.parameters,
            "digest": service.fingerprint,
            "details": _details(service),
        }
        for name in names
    ]


def _details(service: Service) -> dict[str, Any]:
    config = service.model.config
    return {
        "parent_model": "",
        "format": "trimode",
        "family": config.family,
        "families": [config.family],
        "parameter_size": f"{service.parameters / 1e9:.2g}B",
        "quantization_level": service.model.runner.format.name,
    }


def _shown(service: Service) -> dict[str, Any]:
    config, model = service.model.config, service.model
    template = model.chat_template.source if model.chat_template else ""
    capabilities = ["completion"]
    if service.dialect.calls is not None and model.chat_template is not None:
        capabilities.append("tools")
    if service.dialect.thinks:
        capabilities.append("thinking")
    if model.vision_or_none is not None:
        capabilities.append("vision")
    return {
        "modelfile": f"FROM {service.name}\n",
        "parameters": "",
        "template": template,
        "details": _details(service),
        "model_info": {
            "general.architecture": config.family,
            "general.parameter_count": service.parameters,
            f"{config.family}.context_length": config.max_position_embeddings,
            f"{config.family}.embedding_length": config.hidden_size,
            f"{config.family}.block_count": config.num_layers,
        },
        "capabilities": capabilities,
        "modified_at": datetime.fromtimestamp(service.created, UTC).isoformat(),
    }


def _line(data: dict[str, Any]) -> bytes:
    return to_json(data) + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
