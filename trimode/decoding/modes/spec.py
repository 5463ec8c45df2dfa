"""What a mode is, to the rest of the program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimode.decoding.context import DecodingContext
from trimode.decoding.span import Decoder

DENOISING_OPTIONS = frozenset(
    (
        "block_length",
        "commit_rule",
        "threshold",
        "max_denoising_steps",
        "seed_block",
        "show_drafts",
    )
)
"""What modes read that fill blocks over several passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSpec:
    """A mode's decoder and what has to be known before it runs."""

    summary: str
    """What a pass does, for people who choose a mode."""
    decode: Callable[[Sequence[int], DecodingContext], Decoder]
    """(prompt, context) -> generator of spans."""
    scratch_rows: Callable[[DecodingContext], int]
    """Most rows that a pass writes after the KV cache."""
    reads: frozenset[str]
    """Fields of `GenerationOptions` that it reads, of those that only some modes do."""
    needs_mask: bool
    """Whether it needs a model with a mask token."""
    lossless: bool
    """Whether it emits AR's tokens."""
    paying_block: Callable[[DecodingContext], int] | None = None
    """The block length that makes most tokens a second here, by the context's policy. None: a block
    length decides what the text is, or there is none."""
