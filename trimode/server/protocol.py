"""Request bodies, as OpenAI defines them, and the options they become.

A field we do not know is ignored, as OpenAI-compatible servers do. One that we know and cannot
honour is refused by name where it asks for anything: an answer must not quietly differ from the
request.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.server.settings import ServerSettings

Number = StrictFloat | StrictInt

Harmless = tuple[Any, ...]

_NOT_HONOURED: dict[str, Harmless] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "reasoning_effort": ("none", "medium"),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's that we know, with the values that ask for nothing or for the default."""

_WITHOUT_EFFECT = frozenset(
    (
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    )
)
"""Fields of OpenAI's that say who asks, or hint at what to cache; no answer depends on them."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False


class DecodingFields(BaseModel):
    """Our extra body field `decoding`."""

    model_config = ConfigDict(extra="forbid")
    mode: StrictStr | None = None
    block_length: StrictInt | None = None
    threshold: Number | None = None
    revision_threshold: Number | None = None
    show_drafts: StrictBool = False


class ModeChange(BaseModel):
    """Body of /admin/mode."""

    mode: StrictStr


class Body(BaseModel):
    """What all requests for an answer share."""

    model_config = ConfigDict(extra="allow")
    model: StrictStr
    stream: StrictBool | None = False
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    decoding: DecodingFields = Field(default_factory=DecodingFields)

    @model_validator(mode="before")
    @classmethod
    def _can_be_repeated(cls, body: Any) -> Any:
        """Python reads NaN, which is no JSON, and half of a surrogate pair, which is no text."""
        if not isinstance(body, dict):
            return body
        try:
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
        return body


class GenerationRequest(Body):
    """What chat and plain completions share."""

    stream_options: StreamOptions | None = None
    n: StrictInt | None = Field(None, ge=1)
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Number] | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    ignore_eos: StrictBool | None = None

    @property
    def unknown(self) -> dict[str, Any]:
        """Fields that no rule of ours names."""
        return unknown_fields(self.model_extra or {}, _NOT_HONOURED)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream carries the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats


class ChatRequest(GenerationRequest):
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


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions."""

    prompt: StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]]
    max_tokens: StrictInt | None = Field(None, ge=0)
    """0 only with `echo`."""
    logprobs: StrictInt | None = Field(None, ge=0, le=20)
    echo: StrictBool | None = False


def generation_options(
    request: GenerationRequest,
    settings: ServerSettings,
    defaults: GenerationOptions,
    *,
    mode: str | None,
    max_tokens: int | None,
    logprobs: int | None,
    grammar: str | None = None,
    prediction: tuple[int, ...] = (),
) -> list[GenerationOptions]:
    """One set of options per choice, the server's defaults filled in.

    Args:
        request: the body.
        settings: the server's.
        defaults: what the request does not say.
        mode: of the model name's suffix, if it had one.
        max_tokens: under whichever name the request gave it.
        logprobs: number of alternatives wanted, None for no logprobs.
        grammar: what the answer must fit.
        prediction: tokens that the answer may resemble.

    Raises:
        InputError: a value is out of range, or a field cannot be honoured.
    """
    refuse_unsupported(request.model_extra or {}, _NOT_HONOURED)
    if request.stream_options is not None and not request.stream:
        raise InputError("stream_options", "given without stream", "set stream to true")
    count = request.n or 1
    if count > settings.max_choices:
        raise InputError("n", str(count), f"at most {settings.max_choices}")
    if request.decoding.show_drafts and not request.stream:
        raise InputError("decoding.show_drafts", "true without stream", "set stream to true")
    if request.top_p == 0:
        request.top_p = 1e-9  # OpenAI allows 0: only the best token stays
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    seed = secrets.randbits(32) if request.seed is None else request.seed % 2**63
    given: dict[str, object] = {
        "mode": request.decoding.mode or mode,
        "block_length": request.decoding.block_length,
        "threshold": request.decoding.threshold,
        "revision_threshold": request.decoding.revision_threshold,
        "show_drafts": request.decoding.show_drafts,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": request.logit_bias,
        "grammar": grammar,
        "repetition_penalty": request.repetition_penalty,
        "ignore_eos": request.ignore_eos,
        "max_tokens": max_tokens,
        "stop": stop,
        "logprobs": logprobs,
        "seed": seed,
    }
    values = {name: value for name, value in given.items() if value is not None}
    options = defaults.updated(values)
    if grammar is not None and options.mode == "diffusion":
        raise InputError(
            "decoding.mode",
            "diffusion with response_format or tools",
            "such answers need ar, linear, quadratic or auto",
        )
    if prediction:
        options = _predicted(options, prediction)
    others = (options.updated({"seed": (seed + i) % 2**63}) for i in range(1, count))
    return [options, *others]


def _predicted(options: GenerationOptions, prediction: tuple[int, ...]) -> GenerationOptions:
    """With the prediction as drafts: the speculative modes give way to `auto`, which tries them."""
    if options.mode in ("ar", "diffusion"):
        raise InputError("prediction", f"given in mode {options.mode}", "use auto or linear")
    return options.updated({"mode": "auto", "prediction": prediction})


def prediction_text(prediction: dict[str, Any] | None) -> str:
    """The text of OpenAI's `prediction`; empty for none.

    Raises:
        InputError: it is not of type content.
    """
    if prediction is None:
        return ""
    if prediction.get("type") != "content":
        raise InputError("prediction.type", repr(prediction.get("type")), "allowed: content")
    content = prediction.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise InputError("prediction.content", repr(content), "must be text or text parts")
    return content


def refuse_unsupported(extra: Mapping[str, Any], known: Mapping[str, Harmless]) -> None:
    """Raise InputError for a known field that asks for what we do not do."""
    for name, harmless in known.items():
        value = extra.get(name)
        if value is not None and value not in harmless:
            allowed = "this server does not do that; leave it out"
            if harmless:
                allowed += f", or give {' or '.join(map(repr, harmless))}"
            raise InputError(name, "given", allowed)


def unknown_fields(extra: Mapping[str, Any], known: Mapping[str, Harmless]) -> dict[str, Any]:
    """What is in neither table; such fields are ignored."""
    return {k: v for k, v in extra.items() if k not in known and k not in _WITHOUT_EFFECT}
