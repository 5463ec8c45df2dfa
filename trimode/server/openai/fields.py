"""The body fields that endpoints share.

A field that this server does not know is ignored, as OpenAI-compatible servers do, unless its name
is nearly that of a field that is known. A field that this server knows and cannot honour is refused
by name if it asks for anything: an answer must not quietly differ from the request.
"""

import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    create_model,
    model_validator,
)
from pydantic_core import PydanticSerializationError, to_json

from trimode.config import DECODING_FIELDS, GenerationOptions
from trimode.errors import InputError
from trimode.rows import near_miss

Number = StrictFloat | StrictInt


def _whole(value: Any) -> Any:
    """A whole number that was written as a float: some JSON writers know no others."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _limit(value: Any) -> Any:
    """A limit, with -1 for none, as llama.cpp, LM Studio and vLLM have it."""
    value = _whole(value)
    return None if value == -1 and not isinstance(value, bool) else value


WholeNumber = Annotated[StrictInt, BeforeValidator(_whole)]
Limit = Annotated[StrictInt | None, BeforeValidator(_limit)]

HarmlessValues = tuple[Any, ...]
"""Values of a field that ask for nothing, or for what is done anyway."""

DECODING_NAMES: dict[str, str] = {name: f"decoding.{name}" for name in DECODING_FIELDS}
"""What every body calls the decoding options."""

MOST_STOPS = 64
"""Stop strings of a request; OpenAI allows 4."""
MOST_STOP_CHARACTERS = 4096
"""Characters of all its stop strings."""

_WITHOUT_EFFECT = frozenset(
    (
        "metadata",
        "models",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
        "priority",
        "request_id",
        "cache_prompt",
        "id_slot",
        "service_tier",
    )
)
"""Fields of OpenAI and others that say who asks, what to cache or which models to ask if this one
fails: no answer depends on them."""


class _DecodingBase(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """The options that the body gives."""
        return self.model_dump(exclude_none=True)


def _strict(annotation: Any) -> Any:
    """The strict type of a JSON value for a field of `GenerationOptions`; null: not given."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    (member,) = (one for one in members if one is not NoneType)
    strict = {bool: StrictBool, int: WholeNumber, float: Number}.get(member, StrictStr)
    return strict | None


if TYPE_CHECKING:
    DecodingFields = _DecodingBase
else:
    _annotations = get_type_hints(GenerationOptions)
    DecodingFields = create_model(
        "DecodingFields",
        __base__=_DecodingBase,
        __doc__="How to decode: fields beyond OpenAI's.",
        **{
            name: (_strict(_annotations[name]), Field(None, description=help_text))
            for name, help_text in DECODING_FIELDS.items()
        },
    )
"""The body object `decoding`, made from the table of decoding options."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False


class Body(BaseModel):
    """The fields of all endpoints that decode."""

    model_config = ConfigDict(extra="allow")
    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {}
    """Fields that this server knows but does not honour."""
    without_effect: ClassVar[frozenset[str]] = _WITHOUT_EFFECT
    """Fields that this server knows and ignores, because they change no answer."""

    model: StrictStr | None = None
    """The empty text, `default` or none at all: the model that is served."""
    stream: StrictBool | None = False
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    decoding: DecodingFields = Field(default_factory=DecodingFields)

    @model_validator(mode="before")
    @classmethod
    def _can_be_repeated(cls, body: Any) -> Any:
        """Refuse what Python reads but cannot write back: NaN, and half of a surrogate pair."""
        if not isinstance(body, dict):
            return body
        for name, value in body.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: not a number that JSON has")
        try:
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
            to_json(body)
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
        except PydanticSerializationError:
            raise ValueError("body: nested too deeply") from None
        return body

    @property
    def unknown(self) -> list[str]:
        """Names of fields that this server does not know."""
        known = self.not_honoured.keys() | self.without_effect
        return [name for name in self.model_extra or {} if name not in known]

    @property
    def choices(self) -> int:
        """Choices for each prompt."""
        return 1

    def refuse_unsupported(self) -> None:
        """Raise InputError if a known field asks for what this server does not do."""
        extra = self.model_extra or {}
        for name, harmless in self.not_honoured.items():
            value = extra.get(name)
            if value is not None and not _among(value, harmless):
                allowed = "this server does not support it; leave it out"
                if harmless:
                    allowed += f", or give {' or '.join(map(repr, harmless))}"
                raise InputError(name, "given", allowed)
        self._refuse_slips()
        if self.decoding.given().get("show_drafts") and not self.stream:
            raise InputError("decoding.show_drafts", "true without stream", "set stream to true")

    def _refuse_slips(self) -> None:
        """Raise InputError for an unknown field whose name is nearly that of one of ours."""
        for name in self.unknown:
            if name in DECODING_FIELDS:
                allowed = f"give it in decoding: {{'decoding': {{{name!r}: ...}}}}"
                raise InputError(name, "given beside the object decoding", allowed)
            if (near := near_miss(name, type(self).model_fields)) is not None:
                raise InputError(name, "unknown field", f"did you mean {near}?")
            if (near := near_miss(name, DECODING_FIELDS)) is not None:
                raise InputError(name, "unknown field", f"did you mean decoding.{near}?")

    def given_options(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that the body gives under the same names."""
        # OpenAI allows a top_p of 0; only the best token stays then.
        top_p = 1e-9 if self.top_p == 0 else self.top_p
        return {**self.decoding.given(), "temperature": self.temperature, "top_p": top_p}


def _among(value: Any, harmless: HarmlessValues) -> bool:
    """Whether a value is one of some, True and 1 kept apart."""
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless
    )


class GenerationBody(Body):
    """The fields that chat and completions share."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
        # OpenAI's
        "functions": ([],),
        "function_call": ("none", "auto"),
        "best_of": (1,),
        "modalities": (["text"],),
        "audio": (),
        "moderation": (),
        "store": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
        # vLLM's, SGLang's and llama.cpp's
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "chat_template": (),
        "documents": ([],),
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "logits_processors": ([],),
        "lora": ([],),
        "mirostat": (0,),
        "n_probs": (0,),
        "prompt_logprobs": (0,),
        "samplers": ([],),
        "skip_special_tokens": (True,),
        "truncate_prompt_tokens": (-1,),
        "typical_p": (1,),
        "use_beam_search": (False,),
        "xtc_probability": (0,),
    }

    stream_options: StreamOptions | None = None
    n: WholeNumber | None = Field(None, ge=1)
    top_k: Limit = None
    min_p: Number | None = None
    min_tokens: WholeNumber | None = Field(None, ge=0)
    repetition_penalty: Number | None = None
    repeat_penalty: Number | None = None
    """llama.cpp's name of `repetition_penalty`."""
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Number] | None = None
    seed: WholeNumber | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stop_token_ids: list[WholeNumber] | None = Field(None, max_length=MOST_STOPS)
    ignore_eos: StrictBool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    """vLLM's constraints; the `guided_` ones are their older names."""
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None
    """llama.cpp's constraints: this and `grammar`."""
    grammar: Any = None

    @property
    def choices(self) -> int:
        """Choices for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def refuse_unsupported(self) -> None:
        """Raise InputError if a known field asks for what this server does not do."""
        if self.stream_options is not None and not self.stream:
            raise InputError("stream_options", "given without stream", "set stream to true")
        if self.repetition_penalty is not None and self.repeat_penalty is not None:
            raise InputError("repeat_penalty", "given with repetition_penalty", "give one of them")
        super().refuse_unsupported()

    def given_options(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that the body gives under the same names."""
        penalty = self.repetition_penalty
        return {
            **super().given_options(),
            "top_k": self.top_k,
            "min_p": self.min_p,
            "min_tokens": self.min_tokens,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "repetition_penalty": self.repeat_penalty if penalty is None else penalty,
            "ignore_eos": self.ignore_eos,
            "stop": stop_strings(self.stop, "stop"),
            "stop_token_ids": self.stop_token_ids,
            "seed": None if self.seed is None else self.seed % 2**63,
        }


def stop_strings(given: str | list[str] | None, field: str) -> list[str]:
    """The stop strings of a body; empty ones, which forms send, ask for nothing.

    Raises:
        InputError: there are too many, or they are too long.
    """
    stops = [text for text in ([given] if isinstance(given, str) else given or []) if text]
    if len(stops) > MOST_STOPS:
        raise InputError(field, f"{len(stops)} strings", f"at most {MOST_STOPS}")
    if (length := sum(map(len, stops))) > MOST_STOP_CHARACTERS:
        raise InputError(field, f"{length} characters", f"at most {MOST_STOP_CHARACTERS}")
    return stops
