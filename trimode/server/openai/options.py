"""From a body to the choices for the engine: options are resolved here and nowhere else."""

import secrets
from dataclasses import dataclass
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.config import MODE_ALIASES, MODES, GenerationOptions
from trimode.decoding import LOSSLESS_MODES, inherited
from trimode.errors import InputError
from trimode.server.http.errors import ApiError
from trimode.server.openai.fields import Body
from trimode.server.openai.usage import ModeReason
from trimode.server.runtime import Choice
from trimode.server.service import Service


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

    def over(self, prompt: tuple[int, ...], model: LoadedModel) -> list[Choice]:
        """The choices for one prompt.

        If the request gives no limit on tokens, the rest of the context is one too.
        """
        options = self.options
        room = model.config.max_position_embeddings - len(prompt)
        if not self.limited and room > 0:
            options = options.updated({"max_tokens": min(options.max_tokens, room)})
        seeds = ((options.seed + i) % 2**63 for i in range(1, self.choices))
        others = (options.updated({"seed": seed}) for seed in seeds)
        return [Choice(prompt, one) for one in (options, *others)]


def resolve_options(
    service: Service,
    body: Body,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    grammar: str | None = None,
    prediction: tuple[int, ...] = (),
) -> ResolvedOptions:
    """The options that a body asks for, laid over the server's defaults.

    Args:
        service: has the defaults and limits.
        body: of the request.
        max_tokens: the limit, whatever the body calls it.
        logprobs: number of alternatives for each token; None: no log-probabilities.
        grammar: what the answer must fit.
        prediction: tokens that the answer may resemble.

    Raises:
        InputError: a value is out of range, or a field cannot be honoured.
        ApiError: the model is not served here.
    """
    body.refuse_unsupported()
    if body.choices > service.settings.max_choices:
        raise InputError("n", str(body.choices), f"at most {service.settings.max_choices}")
    given = body.given_options()
    mode, mode_reason = _mode(service, body.model, given.pop("mode", None))
    defaults = inherited(service.defaults, mode)
    if grammar is not None and defaults.mode == "diffusion":
        raise InputError(
            "decoding.mode",
            "diffusion with response_format or tools",
            f"such answers need {', '.join(LOSSLESS_MODES)}",
        )
    if prediction and defaults.mode in ("ar", "diffusion"):
        raise InputError("prediction", f"given in mode {defaults.mode}", "use auto or linear")
    if prediction and defaults.mode != "auto":  # only auto looks predictions up
        defaults, mode_reason = inherited(service.defaults, "auto"), "prediction"
    given |= {"max_tokens": max_tokens, "logprobs": logprobs, "grammar": grammar}
    given = {name: value for name, value in given.items() if value is not None}
    own = {"show_drafts": False, "stop": [], "seed": secrets.randbits(32), "prediction": prediction}
    options = defaults.updated({**own, **given})
    return ResolvedOptions(options, body.choices, max_tokens is not None, mode_reason)


def mode_suffix(service: Service, model_name: str) -> str | None:
    """The mode that a model name asks for by its suffix.

    Raises:
        ApiError: the model is not served here.
    """
    base, _, suffix = model_name.rpartition(":")
    if model_name == service.name:
        return None
    if base == service.name and MODE_ALIASES.get(suffix, suffix) in MODES:
        return suffix
    raise ApiError(
        404,
        f"model: {model_name!r} is not served here; use {service.name!r}, with or without a mode "
        f"as suffix ({service.name}:linear)",
        param="model",
        code="model_not_found",
    )


def _mode(service: Service, model_name: str, given: Any) -> tuple[str, ModeReason]:
    """The mode of a request, and what chose it."""
    suffix = mode_suffix(service, model_name)
    if given is not None:
        return given, "request"
    if suffix is not None:
        return suffix, "model_suffix"
    return service.defaults.mode, "server_default"
