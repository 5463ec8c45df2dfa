"""One request on its way through the engine, with all its mutable state."""

import time
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from trimode.config import GenerationOptions
from trimode.decoding import Decoder, DecodingContext, Span, Stats, TokenLogprob
from trimode.engine.pictures import PlacedImage, cache_keys
from trimode.model import KVCache
from trimode.text import TextStream

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A request's prompt, its decoder, what it has produced and what it waits for."""

    id: str
    prompt: tuple[int, ...]
    options: GenerationOptions
    context: DecodingContext
    scratch: int
    """Most rows that a pass of its mode writes after the KV cache."""
    decoder: Decoder
    text_stream: TextStream
    images: tuple[PlacedImage, ...] = ()
    """The prompt's pictures."""
    prompt_keys: tuple[int, ...] = field(init=False)
    """What caches know the prompt's rows by."""
    stats: Stats = field(default_factory=Stats)
    cache: KVCache | None = None
    """None while it waits for admission and after it has finished."""
    tokens_to_recompute: int = 0
    """Tokens that its KV cache held when it was taken away; they are computed again first."""
    suspended_span: tuple[Span, int] | None = None
    """The span that waits for them, and how many of its rows were done."""
    span: Span | None = None
    """What it wants computed next."""
    rows_done: int = 0
    """Rows of `span` already computed (a prefill may take several passes)."""
    partial_hidden: list[Tensor] = field(default_factory=list)
    """Hidden states of the wanted rows among those."""
    last_step: int = -1
    """Engine step in which it last ran; the sequence that waited longest goes first."""
    tokens: list[int] = field(default_factory=list)
    """Completion tokens, the stop token included."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    """What ended it, if it failed."""

    def __post_init__(self) -> None:
        self.prompt_keys = cache_keys(self.prompt, self.images)

    @property
    def all_tokens(self) -> tuple[int, ...]:
        """Prompt and completion."""
        return (*self.prompt, *self.tokens)

    @property
    def keys(self) -> tuple[int, ...]:
        """What caches know all its rows by."""
        return (*self.prompt_keys, *self.tokens)

    @property
    def cache_tokens(self) -> int:
        """Most KV capacity it may need, scratch rows included."""
        return self.context.max_length + self.scratch

    @property
    def budget(self) -> int:
        """Most completion tokens."""
        return self.context.max_length - len(self.prompt)

    @property
    def splittable(self) -> bool:
        """Whether the span may be spread over several passes: causal rows that are all kept."""
        span = self.span
        return span is not None and span.kind == "prefill" and span.keep

    @property
    def is_new(self) -> bool:
        """Whether it reads its prompt (perhaps again) or has no text yet."""
        return self.splittable or not self.tokens

    @property
    def rows_left(self) -> int:
        """Rows of the span still to compute."""
        return 0 if self.span is None else len(self.span.tokens) - self.rows_done

    def start(self, cache: KVCache) -> None:
        """Take a cache, which may hold the prompt's first tokens, and ask for the first span."""
        self.cache = cache
        self.stats.admitted_at = time.monotonic()
        self.stats.cached_tokens = cache.length
        first = next(self.decoder)
        assert isinstance(first, Span), "a decoder begins with a pass"
        self.span, self.rows_done = first, cache.length
