"""From what a request asks to choices for the engine: the one place that resolves options."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimode.checkpoints import LoadedModel
from trimode.config import MODE_ALIASES, MODES, GenerationOptions
from trimode.decoding import LOSSLESS_MODES, inherited
from trimode.engine import PromptImage
from trimode.errors import InputError
from trimode.server.dialogue.form import AnswerForm
from trimode.server.dialogue.prepare import Conversation
from trimode.server.dialogue.prompt import ChatPrompt
from trimode.server.observe.telemetry import Operation
from trimode.server.runtime import ActiveRequest, Choice
from trimode.server.service import Service

ModeReason = Literal["request", "model_suffix", "server_default", "prediction"]
"""What chose the mode: the field `decoding.mode`, the model's name, nothing, or a prediction."""

_ANY_MODEL = ("", "default", "dummy", "tgi")
"""Names of clients that do not know which model is served; the last two are those of Hugging Face's
client, which sends `dummy`, and of the documentation of its server."""


class UnknownModelError(InputError):
    """The model is not served here."""


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """The options of an answer's choices."""

    options: GenerationOptions
    """Of the first choice; the others have the next seeds."""
    choices: int
    """Choices for each prompt."""
    limited: bool
    """Whether the request itself limits the tokens."""
    mode_reason: ModeReason

    def over(
        self, prompt: tuple[int, ...], model: LoadedModel, images: tuple[PromptImage, ...] = ()
    ) -> list[Choice]:
        """The choices for one prompt.

        If the request gives no limit on tokens, the rest of the context is one too.
        """
        options = self.options
        room = model.config.max_position_embeddings - len(prompt)
        if not self.limited and room > 0:
            options = options.updated({"max_tokens": min(options.max_tokens, room)})
        seeds = ((options.seed + i) % 2**63 for i in range(1, self.choices))
        others = (options.updated({"seed": seed}) for seed in seeds)
        return [Choice(prompt, one, images) for one in (options, *others)]


def resolve_options(
    service: Service,
    model_name: str | None,
    given: Mapping[str, Any],
    *,
    choices: int = 1,
    form: AnswerForm | None = None,
) -> ResolvedOptions:
    """The options that a request asks for, laid over the server's defaults.

    Args:
        service: has the defaults and limits.
        model_name: the name that the client gave.
        given: fields of `GenerationOptions`; None is "not given".
        choices: for each prompt.
        form: of the answer, if it has one.

    Raises:
        InputError: a value is out of range, or a field cannot be honoured.
        UnknownModelError: the model is not served here.
    """
    if choices > service.settings.max_choices:
        raise InputError("n", str(choices), f"at most {service.settings.max_choices}")
    given = {name: value for name, value in given.items() if value is not None}
    mode, mode_reason = _mode(service, model_name, given.pop("mode", None))
    defaults = inherited(service.defaults, mode)
    form = form or AnswerForm()
    if form.grammar is not None and defaults.mode == "diffusion":
        raise InputError(
            "decoding.mode",
            "diffusion with response_format or tools",
            f"such answers need {', '.join(LOSSLESS_MODES)}",
        )
    prediction = given.get("prediction", ())
    if prediction and defaults.mode in ("ar", "diffusion"):
        raise InputError("prediction", f"given in mode {defaults.mode}", "use auto or linear")
    if prediction and defaults.mode != "auto":  # only auto looks predictions up
        defaults, mode_reason = inherited(service.defaults, "auto"), "prediction"
    own: dict[str, Any] = {
        "show_drafts": False,
        "stop": [],
        "seed": secrets.randbits(32),
        "prediction": (),
        "grammar": form.grammar,
        "shown_special_ids": service.dialect.shown_special_ids if form.shows_special else (),
    }
    limited = "max_tokens" in given
    if not limited and given.get("min_tokens", 0) > defaults.max_tokens:
        own["max_tokens"] = given["min_tokens"]
    return ResolvedOptions(defaults.updated({**own, **given}), choices, limited, mode_reason)


def mode_suffix(service: Service, model_name: str | None) -> str | None:
    """The mode that a model name asks for by its suffix.

    The empty name and `default` stand for the model that is served, and `NAME:latest`, which
    Ollama's clients say, for `NAME`.

    Raises:
        UnknownModelError: the model is not served here.
    """
    name = (model_name or "").removesuffix(":latest")
    base, _, suffix = name.rpartition(":")
    if name in (service.name, *_ANY_MODEL):
        return None
    if base in (service.name, *_ANY_MODEL) and MODE_ALIASES.get(suffix, suffix) in MODES:
        return suffix
    allowed = f"use {service.name!r}, with or without a mode as suffix ({service.name}:linear)"
    raise UnknownModelError("model", f"{name!r} is not served here", allowed)


def _mode(service: Service, model_name: str | None, given: Any) -> tuple[str, ModeReason]:
    """The mode of a request, and what chose it."""
    suffix = mode_suffix(service, model_name)
    if given is not None:
        return given, "request"
    if suffix is not None:
        return suffix, "model_suffix"
    return service.defaults.mode, "server_default"


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer of one choice in a conversation, on its way."""

    request: ActiveRequest
    prompt: ChatPrompt
    form: AnswerForm
    mode_reason: ModeReason


async def begin_turn(
    service: Service,
    conversation: Conversation,
    model_name: str | None,
    given: Mapping[str, Any],
    *,
    answer_id: str,
    headers: Mapping[str, str],
    stream: bool,
    operation: Operation = "chat",
) -> Turn:
    """Prepare a conversation and have its answer decoded.

    Args:
        service: decodes.
        conversation: what the request says.
        model_name: the name that the client gave.
        given: fields of `GenerationOptions`; None is "not given".
        answer_id: the answer's id.
        headers: of the request; they may name a parent span.
        stream: whether the client gets text before the end.
        operation: the kind of endpoint, for the span.

    Raises:
        InputError: something is refused; names the field.
        QueueFullError: too many requests wait.
    """
    prompt, form = await service.prepare(conversation)
    return await start_turn(
        service,
        prompt,
        form,
        model_name,
        given,
        answer_id=answer_id,
        headers=headers,
        stream=stream,
        operation=operation,
    )


async def start_turn(
    service: Service,
    prompt: ChatPrompt,
    form: AnswerForm,
    model_name: str | None,
    given: Mapping[str, Any],
    *,
    answer_id: str,
    headers: Mapping[str, str],
    stream: bool,
    operation: Operation,
) -> Turn:
    """Have the answer to a prompt decoded; the arguments are those of `begin_turn`."""
    resolved = resolve_options(service, model_name, given, form=form)
    try:
        (request,) = await service.submit(
            resolved.over(prompt.tokens, service.model, prompt.images),
            operation=operation,
            model_name=model_name or service.name,
            answer_id=answer_id,
            headers=headers,
            stream=stream,
        )
    except InputError as error:
        if error.field != "grammar":
            raise
        raise InputError(form.field, error.found, error.allowed) from None
    return Turn(request, prompt, form, resolved.mode_reason)
