"""Every failure as OpenAI's error object, with its status codes."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trimode.errors import ContextLengthError, InputError
from trimode.server.choices import UnknownModelError
from trimode.server.runtime import EngineFailedError, QueueFullError

logger = logging.getLogger(__name__)

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_TYPE_NAMES = ("str", "int", "float", "bool")
"""What pydantic adds to the path of a field that may have several types."""
_SHOWN = 80
"""Most characters of a wrong value that an error repeats."""


CONTEXT_LENGTH_CODE = "context_length_exceeded"
"""The code of a prompt that is too long."""


class ApiError(Exception):
    """A request is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Rename the fields of InputErrors from the engine's names to those of the request's body."""
    try:
        yield
    except InputError as error:
        if error.field not in names:
            raise
        raise type(error)(names[error.field], error.found, error.allowed) from None


ErrorForms = Mapping[str, Callable[[int, str, str | None], dict[str, Any]]]
"""What makes a protocol's error object from a status, a message and a code, by the beginning of its
paths; OpenAI's is made for all others."""


def error_body(
    forms: ErrorForms,
    path: str,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """The error object of the protocol that a path belongs to."""
    form = next((form for start, form in forms.items() if path.startswith(start)), None)
    if form is None:
        return error_object(status, message, param, code)
    return form(status, message, code)


def install(app: FastAPI, forms: ErrorForms) -> None:
    """Make every failure of the app an error object."""
    app.state.error_forms = forms

    @app.exception_handler(ApiError)
    async def api_error(http: Request, error: ApiError) -> JSONResponse:
        return _answer(http, error.status, str(error), error.param, error.code, error.headers)

    @app.exception_handler(InputError)
    async def bad_input(http: Request, error: InputError) -> JSONResponse:
        status, code = 400, None
        if isinstance(error, ContextLengthError):
            code = CONTEXT_LENGTH_CODE
        if isinstance(error, UnknownModelError):
            status, code = 404, "model_not_found"
        return _answer(http, status, str(error), error.field, code)

    @app.exception_handler(RequestValidationError)
    async def bad_body(http: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(http, 400, *_validation_message(error.errors()[0]))

    @app.exception_handler(RecursionError)
    async def too_deep(http: Request, _: RecursionError) -> JSONResponse:
        return _answer(http, 400, "body: nested too deeply")

    @app.exception_handler(QueueFullError)
    async def full(http: Request, error: QueueFullError) -> JSONResponse:
        message = f"the server is busy: {error}; try again"
        return _answer(http, 429, message, code="queue_full", headers={"Retry-After": "1"})

    @app.exception_handler(EngineFailedError)
    async def failed(http: Request, error: EngineFailedError) -> JSONResponse:
        return _answer(http, error.status, str(error))

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        return _answer(http, error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def fault(http: Request, _: Exception) -> JSONResponse:
        return _answer(http, 500, "the server failed; its log says more")


def _answer(
    http: Request,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    # The message may repeat a part of the body, even of a prompt, so the log leaves it out.
    facts = {"status": status, "path": http.url.path, "param": param, "code": code}
    logger.info("refused", extra={"facts": facts})
    forms: ErrorForms = http.app.state.error_forms
    body = error_body(forms, http.url.path, status, message, param, code)
    return JSONResponse(body, status, headers)


def _validation_message(first: Mapping[str, Any]) -> tuple[str, str | None]:
    """What to say of a body that is not as it should be, and its field at fault."""
    if first["type"] == "json_invalid":
        return f"body: not JSON; {first['ctx']['error']}", None
    field = _field(first["loc"])
    if field is None and isinstance(first.get("input"), bytes):
        return "body: not sent as JSON; give the header Content-Type: application/json", None
    if field is None and first["type"] == "value_error":  # our own words; they name the field
        return str(first["ctx"]["error"]), None
    given = "" if first["type"] == "missing" else f" {_short(first['input'])};"
    return f"{field or 'body'}:{given} {first['msg']}", field


def _field(place: tuple[int | str, ...]) -> str | None:
    """The path of a field in the body, such as `stop` or `tools[0].type`."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "body" and part not in _TYPE_NAMES and "[" not in part:
            path += f".{part}" if path else part
    return path or None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
