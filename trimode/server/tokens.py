"""Texts and tokens: the routes of vLLM and llama.cpp that tokenise, detokenise and render."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from trimode.errors import InputError
from trimode.server.dialogue.prompt import ChatPrompt, tokens_of
from trimode.server.openai.chat import ChatBody
from trimode.server.openai.fields import WholeNumber
from trimode.server.service import Service


class TokenizeBody(BaseModel):
    """Body of /tokenize: vLLM's `prompt`, or llama.cpp's `content`."""

    model_config = ConfigDict(extra="allow")

    prompt: StrictStr | None = None
    content: StrictStr | None = None
    messages: list[Any] | None = None
    """vLLM's: a conversation, with all fields of a chat body beside it."""
    add_special_tokens: StrictBool = True
    """vLLM's: whether to begin as the tokenizer does."""
    add_special: StrictBool = False
    """The same of llama.cpp, with another default."""
    return_token_strs: StrictBool = False
    with_pieces: StrictBool = False


class DetokenizeBody(BaseModel):
    """Body of /detokenize."""

    model_config = ConfigDict(extra="allow")

    tokens: list[WholeNumber] = Field(max_length=2**20)


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    model = service.model

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        if body.messages is not None:
            ids = (await _rendered(service, _chat_body(body))).tokens
            return _counted(service, ids, pieces=body.return_token_strs)
        if body.content is not None:
            ids = await _encoded(service, body.content, special=body.add_special)
            if body.with_pieces:
                return {"tokens": [{"id": i, "piece": _piece(service, i)} for i in ids]}
            return {"tokens": list(ids)}
        if body.prompt is None:
            raise InputError("prompt", "missing", "needs prompt, content or messages")
        ids = await _encoded(service, body.prompt, special=body.add_special_tokens)
        return _counted(service, ids, pieces=body.return_token_strs)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        size = model.config.vocab_size
        wrong = next((token for token in body.tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise InputError("tokens", f"token id {wrong}", f"ids are 0..{size - 1}")
        text = model.tokenizer.decode(body.tokens, skip_special=False)
        return {"prompt": text, "content": text}

    @app.post("/apply-template")
    async def apply_template(body: ChatBody) -> dict[str, str]:
        return {"prompt": (await _rendered(service, body)).text}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return _info(service)


def _info(service: Service) -> dict[str, Any]:
    """The tokenizer's names, as in a tokenizer_config.json."""
    model = service.model
    tokenizer, config = model.tokenizer, model.config
    eos = tokenizer.eos_token_id
    if eos is None:
        eos = next(iter(config.eos_token_ids), None)

    def text(token: int | None) -> str | None:
        return None if token is None else tokenizer.token_text(token)

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(tokenizer.bos_token_id),
        "eos_token": text(eos),
        "pad_token": text(eos),
        "add_bos_token": tokenizer.add_bos,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": config.max_position_embeddings,
        "chat_template": model.chat_template.source if model.chat_template else None,
    }


def _chat_body(body: TokenizeBody) -> ChatBody:
    fields = {"messages": body.messages, **(body.model_extra or {})}
    try:
        return ChatBody.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _rendered(service: Service, body: ChatBody) -> ChatPrompt:
    prompt, _ = await service.prepare(body.conversation())
    return prompt


async def _encoded(service: Service, text: str, *, special: bool) -> tuple[int, ...]:
    add_bos = None if special else False
    return await service.aside(lambda: tokens_of(service.model, text, add_bos=add_bos))


def _counted(service: Service, ids: tuple[int, ...], *, pieces: bool) -> dict[str, Any]:
    """VLLM's answer."""
    return {
        "count": len(ids),
        "max_model_len": service.model.config.max_position_embeddings,
        "tokens": list(ids),
        "token_strs": [_spelled(service, i) for i in ids] if pieces else None,
    }


def _spelled(service: Service, token: int) -> str | None:
    return service.model.tokenizer.backend.id_to_token(token)


def _piece(service: Service, token: int) -> str | list[int]:
    """llama.cpp's piece: a text, or bytes where the token is a part of a character."""
    data = service.model.tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
