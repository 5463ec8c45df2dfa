"""How many tokens an answer has, counted in one place for `usage` and for spans."""

from collections.abc import Iterable
from dataclasses import dataclass

from trimode.engine import Sequence


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of all choices of an answer."""

    prompt: int
    completion: int
    cached: int
    """Prompt tokens that were in the KV cache already."""
    images: int
    """Prompt tokens that stand for pictures."""


def token_counts(sequences: Iterable[Sequence]) -> TokenCounts:
    """Count the tokens of an answer's choices; a prompt that several choices share counts once."""
    sequences = list(sequences)
    by_prompt: dict[int, list[Sequence]] = {}
    for sequence in sequences:
        by_prompt.setdefault(id(sequence.prompt), []).append(sequence)
    # The first choice finds what earlier answers left. The others find the first one's prompt too.
    return TokenCounts(
        prompt=sum(len(group[0].prompt) for group in by_prompt.values()),
        completion=sum(s.stats.completion_tokens for s in sequences),
        cached=sum(min(s.stats.cached_tokens for s in group) for group in by_prompt.values()),
        images=sum(len(p.positions) for group in by_prompt.values() for p in group[0].images),
    )
