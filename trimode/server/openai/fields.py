"""The body fields that endpoints share.

A field that this server does not know is ignored, as OpenAI-compatible servers do. A field that it
knows and cannot honour is refused by name if it asks for anything: an answer must not quietly
differ from the request.
"""

import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    create_model,
    model_validator,
)

from trimode.config import DECODING_FIELDS, GenerationOptions
from trimode.errors import InputError

Number = StrictFloat | StrictInt

HarmlessValues = tuple[Any, ...]
"""Values of a field that ask for nothing, or for what is done anyway."""

DECODING_NAMES: dict[str, str] = {name: f"decoding.{name}" for name in DECODING_FIELDS}
"""What every body calls the decoding options."""

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
"""OpenAI's fields that say who asks or what to cache: no answer depends on them."""


class _DecodingBase(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """The options that the body gives."""
        return self.model_dump(exclude_none=True)


def _strict(annotation: Any) -> Any:
    """The strict type of a JSON value for a field of `GenerationOptions`; null: not given."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    (member,) = (one for one in members if one is not NoneType)
    strict = {bool: StrictBool, int: StrictInt, float: Number}.get(member, StrictStr)
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
    """OpenAI's fields that this server knows but does not honour."""
    without_effect: ClassVar[frozenset[str]] = _WITHOUT_EFFECT
    """OpenAI's fields that this server knows and ignores, because they change no answer."""

    model: StrictStr
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
        try:
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
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
            if value is not None and value not in harmless:
                allowed = "this server does not support it; leave it out"
                if harmless:
                    allowed += f", or give {' or '.join(map(repr, harmless))}"
                raise InputError(name, "given", allowed)
        if self.decoding.given().get("show_drafts") and not self.stream:
            raise InputError("decoding.show_drafts", "true without stream", "set stream to true")

    def given_options(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that the body gives under the same names."""
        # OpenAI allows a top_p of 0; only the best token stays then.
        top_p = 1e-9 if self.top_p == 0 else self.top_p
        return {**self.decoding.given(), "temperature": self.temperature, "top_p": top_p}


class GenerationBody(Body):
    """The fields that chat and completions share."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
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
        super().refuse_unsupported()

    def given_options(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that the body gives under the same names."""
        return {
            **super().given_options(),
            "top_k": self.top_k,
            "min_p": self.min_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop or [],
            "seed": None if self.seed is None else self.seed % 2**63,
        }
